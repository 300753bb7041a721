"""The report of a run: one self-contained page, and ``report.json`` with every number on it. Imports no torch.

``data`` reads a run folder; ``slices``, ``seen_effect``, ``ties``, ``junk``, ``reliability``, ``position`` and
``stages`` turn arrays into plain dicts of numbers; ``sections`` and ``charts`` lay these out; ``page`` renders them;
``make`` drives. The page reads nothing but ``report.json``'s content, so it cannot show a number that is not there.
"""
