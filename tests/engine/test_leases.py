from __future__ import annotations

from engine.leases import LeaseBook


def test_a_lease_is_taken_once():
    book = LeaseBook("w1-3", 30.0)
    lease = book.grant("r1", 1, [4, 5], 7, now_s=10.0)
    assert lease.expires_s == 40.0
    assert book.get(lease.lease_id) is lease
    assert book.find("r1", 1) is lease
    assert book.take(lease.lease_id) is lease
    assert book.take(lease.lease_id) is None
    assert book.find("r1", 1) is None


def test_leases_expire_in_order_and_only_when_due():
    book = LeaseBook("w1-3", 30.0)
    first, second = book.grant("r1", 1, [1], 4, 0.0), book.grant("r2", 1, [2], 4, 5.0)
    assert first.lease_id != second.lease_id
    assert book.next_expiry_s == 30.0
    assert book.take_due(29.9) == []
    assert book.take_due(30.0) == [first]
    assert book.next_expiry_s == 35.0
    assert (len(book), book.num_expired) == (1, 1)


def test_a_lost_lease_has_no_blocks():
    assert LeaseBook("w1-3", 1.0).take("w1-3-1") is None
