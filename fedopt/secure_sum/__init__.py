"""The sum of the parties' vectors, of which the server sees nothing but the sum.

Numbers become integers modulo 2^64 (`fixed_point`), so masks cancel without a trace and the sum is exact: the same bits
whatever the masks were and whoever dropped out unheard. That is why keys may come from the system's random numbers and
not from the run's key, and a run is repeatable all the same.

    round       party                                          server
    0, once     ciphers.pair() -> Pair                         the roster of public keys
                joined(pair, roster, t) -> Party
    1           deal(party, k) -> Deal                         letters(deals, receiver)
                received(party, k, letters) -> Held
    2           masked(party, held, encode(x)) -> words        collects who answered
    3           given(held, answered, dropped) -> Given        total(deals, masked, given, t) -> words, decode

Rounds 1 to 3 are one exchange, k is its number. Nothing of round 1 depends on vectors, so it may be done for the next
exchange along with round 2 of this one. Every function gives its result and the value that stands for its owner from
then on; whoever goes on from an older value loses what that value was to prevent.

What the server learns: the sum over those whose vectors it had. It follows the protocol, may be slow to hear, may look
at all that it gets, and may share it with up to t - 1 parties; then it learns the sum over the others. A server that
does not follow the protocol is not kept out. With t > n / 2 it cannot at least be given shares of both kinds for one
party by telling two halves of honest parties different things. Nobody checks what vector a party takes part with.

Who drops out: before its deal, a party is no member, and nothing is masked for it. After it, n - t of n may go, in
rounds 2 and 3 together. Of one that goes before its vector came, the server learns the seeds that it shares with the
others in this exchange, and takes the others' masks away with them. Its vector stays hidden if it comes after all, as
its own mask is on it, and so do its vectors of other exchanges, whose seeds do not follow from these. So it may take
part in the next exchange with the same keys. One that restarts and has lost its `Party` must not count exchanges anew
with old keys: it makes new ones, and everybody joins with the new roster, which makes every key of every pair new.

Reference: Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth 2017, 'Practical Secure Aggregation
for Privacy-Preserving Machine Learning', figure 4, without the steps against an active server.

Differences from the paper: there, keys are agreed on anew for each sum, and what is split of a party is the private key
of its masks. Here keys serve a whole run, so that private key would unmask every vector that the party ever sent: the
server has learnt their own masks, as the party had answered. In its place the seeds of one exchange lie sealed at the
server, and the key to them is split. As no private key is ever given away, one pair of keys serves for letters and
masks. The secrets that are split are 16 bytes long, and a hash says whether shares gave the right one.
"""

from __future__ import annotations

from fedopt.registry import ConfigError

try:
    from fedopt.secure_sum import ciphers, fixed_point
    from fedopt.secure_sum.party import Deal, Given, Held, Party, TooFew, deal, given, joined, masked, received
    from fedopt.secure_sum.server import letters, total
except ImportError as error:
    raise ConfigError(
        "secure_sum",
        f"secure sums need the packages cryptography and pycryptodome ({error}); install them with"
        " pip install 'fedopt[secure]'",
    ) from error

__all__ = [
    "Deal", "Given", "Held", "Party", "TooFew", "ciphers", "deal", "fixed_point", "given", "joined", "letters",
    "masked", "received", "total",
]  # fmt: skip
