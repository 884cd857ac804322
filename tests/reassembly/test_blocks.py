from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsmith.errors import RecipeError
from netsmith.search.blocks import Block


def test_a_block_prints_as_python_slices_do():
    assert str(Block("resnet20", 0, 3)) == "resnet20[0:3]"
    assert len(Block("resnet20", 4, 9)) == 5


@given(st.text(min_size=1).filter(lambda s: s == s.strip()), st.integers(0, 500), st.integers(1, 500))
def test_parse_reads_back_what_str_wrote(network, start, length):
    block = Block(network, start, start + length)
    assert Block.parse(str(block)) == block


def test_a_network_name_may_hold_colons_and_brackets():
    assert Block.parse("timm:resnet18.a1_in1k[1:2]") == Block("timm:resnet18.a1_in1k", 1, 2)
    assert Block.parse("runs/a[b]@0.5[10:12]") == Block("runs/a[b]@0.5", 10, 12)


def test_blocks_sort_by_network_then_place():
    blocks = [Block("b", 0, 1), Block("a", 3, 4), Block("a", 0, 5), Block("a", 0, 2)]
    assert sorted(blocks) == [Block("a", 0, 2), Block("a", 0, 5), Block("a", 3, 4), Block("b", 0, 1)]


@pytest.mark.parametrize("text", ["", "resnet20", "resnet20[0]", "resnet20[a:b]", "[0:3]", "resnet20[0:3]x", "n[-1:2]"])
def test_parse_says_what_it_expected(text):
    with pytest.raises(RecipeError, match=r"expected a block such as 'resnet20\[0:3\]'.*got"):
        Block.parse(text)


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 2)])
def test_an_empty_run_is_no_block(start, stop):
    with pytest.raises(RecipeError, match=r"at least one unit.*'net'"):
        Block("net", start, stop)
    with pytest.raises(RecipeError, match="at least one unit"):
        Block.parse(f"net[{start}:{stop}]")


def test_a_block_knows_its_network():
    with pytest.raises(RecipeError, match="name of its network"):
        Block("", 0, 1)
