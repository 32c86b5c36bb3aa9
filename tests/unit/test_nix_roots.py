"""How Nix names an indirect root: what a profile's link must be registered as."""

from __future__ import annotations

import pytest

from reconciler.effects.nix.profiles import _indirect_root


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("/tmp/prof/system-3-link", "7jg329ck1is1yp27gkszwlkfagnj1x2y"),
        ("/tmp/nix-build-21270-0/result", "jplhxbgzvlxiwa3s2mk24qf437j94zg0"),
        ("/tmp/nix-build-21241-0/result", "rc2l219ck6skv8yzfkhbbgd0r5bsskql"),
    ],
)
def test_the_name_is_the_one_that_nix_2_26_gave(link: str, name: str) -> None:
    assert _indirect_root(link) == name
