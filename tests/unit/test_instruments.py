from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemahub.errors import EmptyPage, MalformedResponse
from schemahub.exchanges import Product
from schemahub.instruments import DAY_S, DELISTED, FEW, OFFLINE, ONLINE, Instrument, check_list, merge

T = 1_700_000_000
BTC = Product("BTC-USD", "XBTUSD", "online", True)
ETH = Product("ETH-USD", "ETHUSD", "online", True)


def only(instruments: tuple[Instrument, ...], product: str = "BTC-USD") -> Instrument:
    found = [i for i in instruments if i.product == product]
    assert len(found) == 1
    return found[0]


def looks(*lists: list[Product], step_s: int = DAY_S) -> tuple[Instrument, ...]:
    """What is known after one look after the other, the first at T."""
    known: tuple[Instrument, ...] = ()
    for number, listed in enumerate(lists):
        known = merge(known, "kraken", listed, T + number * step_s)
    return known


def test_a_new_product_begins_with_the_first_look_that_shows_it() -> None:
    one = only(looks([BTC]))
    assert one == Instrument("kraken", "BTC-USD", "XBTUSD", ONLINE, "online", 1, T, T, T)
    assert (one.base, one.quote) == ("BTC", "USD")


def test_a_product_that_vanishes_stays_as_delisted_with_its_last_look() -> None:
    gone = only(looks([BTC, ETH], [BTC, ETH], [ETH], [ETH]))
    assert (gone.status, gone.last_seen, gone.listing_epoch) == (DELISTED, T + DAY_S, 1)
    assert gone.exchange_status == "online"


def test_a_delisted_product_that_is_listed_again_begins_a_new_epoch() -> None:
    again = only(looks([BTC, ETH], [ETH], [ETH], [BTC, ETH], [BTC, ETH]))
    assert (again.status, again.listing_epoch) == (ONLINE, 2)
    assert (again.first_seen, again.listed_since, again.last_seen) == (T, T + 3 * DAY_S, T + 4 * DAY_S)


def test_a_pause_is_no_delisting() -> None:
    paused = replace(BTC, status="halt", online=False)
    assert (only(looks([BTC], [paused])).status, only(looks([BTC], [paused])).exchange_status) == (OFFLINE, "halt")
    assert only(looks([BTC], [paused], [BTC])).listing_epoch == 1


def test_an_exchange_that_says_delisted_itself_is_believed() -> None:
    dead = replace(BTC, status="closed", online=False, delisted=True)
    gone = only(looks([BTC], [dead], [dead]))
    assert (gone.status, gone.exchange_status, gone.last_seen) == (DELISTED, "closed", T)
    assert only(looks([BTC], [dead], [], [BTC])).listing_epoch == 2


def test_a_look_that_tells_nothing_new_changes_nothing_within_a_day() -> None:
    first = looks([BTC, ETH])
    assert merge(first, "kraken", [BTC, ETH], T + DAY_S - 1) == first
    assert only(merge(first, "kraken", [BTC, ETH], T + DAY_S)).last_seen == T + DAY_S


def test_a_change_within_the_day_is_noted_with_its_time() -> None:
    renamed = only(merge(looks([BTC]), "kraken", [replace(BTC, symbol="BTC/USD")], T + 60))
    assert (renamed.symbol, renamed.last_seen) == ("BTC/USD", T + 60)


def test_a_clock_that_was_set_back_does_not_turn_times_around() -> None:
    back = only(merge(looks([BTC, ETH], [ETH]), "kraken", [BTC, ETH], T - DAY_S))
    assert back.first_seen <= back.listed_since <= back.last_seen
    assert back.listing_epoch == 2


def test_other_exchanges_stay_as_they_are() -> None:
    other = Instrument("okx", "BTC-USD", "BTC-USD", ONLINE, "live", 3, T, T, T)
    assert merge([other], "kraken", [ETH], T + 5 * DAY_S)[-1] is other


def test_of_two_with_one_name_that_which_trades_is_meant() -> None:
    old = Product("BTC-USD", "OLD", "closed", False)
    for listed in ([BTC, old], [old, BTC]):
        check_list("kraken", (), listed)
        assert only(looks(listed)).symbol == "XBTUSD"


def test_two_that_trade_under_one_name_are_refused() -> None:
    with pytest.raises(MalformedResponse, match="BTC-USD twice"):
        check_list("kraken", (), [BTC, replace(BTC, symbol="OTHER")])


@pytest.mark.parametrize(
    "change", [{"symbol": ""}, {"symbol": "x" * 65}, {"symbol": "a\nb"}, {"status": "x" * 65}, {"status": "a\x00"}]
)
def test_a_list_with_what_is_no_word_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(MalformedResponse, match="ETH-USD is listed as"):
        check_list("kraken", (), [BTC, replace(ETH, **change)])  # type: ignore[arg-type]
    check_list("kraken", (), [BTC, replace(ETH, status="")])
    assert only(looks([replace(BTC, status="")])).exchange_status == ""


def many(count: int) -> list[Product]:
    return [Product(f"C{n}-USD", f"C{n}USD", "online", True) for n in range(count)]


def test_an_empty_list_is_never_taken_for_an_end() -> None:
    with pytest.raises(EmptyPage):
        check_list("kraken", looks([BTC]), [], accept_delisted=True)


def test_a_list_that_lost_most_of_what_is_known_is_refused_unless_accepted() -> None:
    known = looks(many(20))
    check_list("kraken", known, many(10))
    with pytest.raises(MalformedResponse, match="11 of 20 known products") as refused:
        check_list("kraken", known, many(9))
    assert "--accept-delisted" in refused.value.remedy
    check_list("kraken", known, many(9), accept_delisted=True)
    check_list("okx", known, many(1))


def test_a_few_may_go_at_once_and_what_is_gone_already_does_not_count() -> None:
    check_list("kraken", looks(many(FEW + 1)), many(1))
    check_list("kraken", merge(looks(many(20)), "kraken", many(10), T), many(5))


products = st.sampled_from([f"{b}-USD" for b in "ABCD"])
answers = st.dictionaries(products, st.sampled_from(["online", "halt", "closed"]))


@given(st.lists(st.tuples(answers, st.integers(-DAY_S, 3 * DAY_S)), max_size=12))
def test_nothing_is_ever_dropped_and_epochs_count_the_relistings(history: list[tuple[dict[str, str], int]]) -> None:
    known: tuple[Instrument, ...] = ()
    now, ever, epochs, live = T, set[str](), dict[str, int](), set[str]()
    for answer, step in history:
        now += step
        listed = [Product(p, p, s, s == "online", s == "closed") for p, s in answer.items()]
        known = merge(known, "kraken", listed, now)
        living = {p for p, s in answer.items() if s != "closed"}
        for product in answer:
            relisted = product in ever and product in living and product not in live
            epochs[product] = epochs.get(product, 1) + relisted
        ever |= answer.keys()
        live = living
        assert [i.product for i in known] == sorted(ever)
        assert {i.product for i in known if i.status != DELISTED} == living
        assert {i.product: i.listing_epoch for i in known} == epochs
        assert merge(known, "kraken", listed, now) == known
        assert [Instrument.from_json(i.to_json()) for i in known] == list(known)
