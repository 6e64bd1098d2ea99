"""One request that is passed to an account of the pool as it is, and its answer.

What turns are to ``POST /responses``, passages are to everything beside it: an account is
found, the request is sent, a refusal that another account may not share sends it on, and the
answer is relayed byte for byte.  Nothing moves any more once the client has seen a byte.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from twisted.logger import Logger

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.error_parsing import from_answer, from_http, may_be_bare_error
from gateway.protocol.errors import ApiError
from gateway.protocol.rate_limits import read_windows
from gateway.protocol.refusals import NOT_SERVED, for_the_client
from gateway.routing.account import Account
from gateway.routing.selection import RouteRequest, Selection
from gateway.routing.wait_queue import WaitReason
from gateway.turn.account_search import AccountSearch, Bound
from gateway.turn.blame import FaultAttribution
from gateway.turn.cargo import ProxiedResponseSink, RequestSpec
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.itinerary import InTurn, Itinerary, Known, NoPlace, Place
from gateway.turn.recorder import SAME_ACCOUNT, TurnRecorder
from gateway.upstream.interface import UpstreamExchange

_logger = Logger(namespace="gateway.passage")

#: An answer in one piece that is longer than this is no error in the place of one.
_MAX_ERROR_BYTES = 65_536


class ProxiedRequestState(enum.Enum):
    """Where a passage stands."""

    SEEKING = "seeking"
    SENT = "sent"
    REFUSED = "refused"
    HELD = "held"
    RELAYING = "relaying"
    ENDED = "ended"


TRANSITIONS = {
    ProxiedRequestState.SEEKING: {ProxiedRequestState.SENT, ProxiedRequestState.ENDED},
    ProxiedRequestState.SENT: {
        ProxiedRequestState.SEEKING,
        ProxiedRequestState.REFUSED,
        ProxiedRequestState.HELD,
        ProxiedRequestState.RELAYING,
        ProxiedRequestState.ENDED,
    },
    ProxiedRequestState.REFUSED: {ProxiedRequestState.SEEKING, ProxiedRequestState.ENDED},
    ProxiedRequestState.HELD: {
        ProxiedRequestState.SEEKING,
        ProxiedRequestState.RELAYING,
        ProxiedRequestState.ENDED,
    },
    ProxiedRequestState.RELAYING: {ProxiedRequestState.ENDED},
    ProxiedRequestState.ENDED: set(),
}


class ProxiedRequest:
    """One request and its answer.

    :param context: whose it is.
    :ivar account: where it is, or was last; None before it was anywhere.
    :ivar record: its entry in the journal.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        spec: RequestSpec,
        door: ProxiedResponseSink,
    ) -> None:
        self._services = services
        self._context = context
        self._spec = spec
        self._door = door
        self._state = ProxiedRequestState.SEEKING
        self._itinerary: Itinerary | None = None
        self._place: Place = NoPlace()
        self._call: UpstreamExchange | None = None
        self._paused = False
        self._relayed = False
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._held = bytearray()
        self._blame = FaultAttribution(services, context, spec.model, spec.fingerprint)
        self.account: Account | None = None
        self._log = TurnRecorder(
            services,
            context,
            spec.model,
            None if context.parent is None else context.parent.record.id,
            spec.size,
            route=spec.what,
        )
        self.record = self._log.record

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self._context.tenant

    # --- the door's side -------------------------------------------------------------

    def through_the_pool(self, wanted: RouteRequest, bound: Bound) -> None:
        """Send it to accounts that the pool chooses.

        :param bound: what binds it to accounts.
        """
        search = AccountSearch(self._services, self._context, wanted, bound, self)
        self._start(search)

    def to_one_of(self, accounts: Sequence[Known], unknown: ApiError) -> None:
        """Send it to these, one after the other, until one knows what it asks for.

        :param unknown: what is answered when none does.
        """
        self._start(InTurn(accounts, self._at, self.search_failed, unknown))

    def cancel(self, satisfied: bool = False) -> None:
        """The client is gone.

        :param satisfied: it had all that it wanted; some do not wait for the end.
        """
        if self._state is not ProxiedRequestState.ENDED:
            self._close("completed" if satisfied else "cancelled", None)

    def abandon(self, error: ApiError) -> None:
        """The gateway gives it up."""
        if self._state is not ProxiedRequestState.ENDED:
            self._end(error)

    def pause(self) -> None:
        """The client reads too slowly: stop reading the upstream."""
        self._paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._call is not None:
            self._call.resume()

    # --- finding and sending ---------------------------------------------------------

    def _start(self, itinerary: Itinerary) -> None:
        self._itinerary = itinerary
        self._log.queued()
        self._seek()

    def _seek(self) -> None:
        assert self._itinerary is not None
        try:
            self._itinerary.next()
        except ApiError as error:
            self._end(error)

    def search_found(self, choice: Selection) -> None:
        """See :class:`~gateway.turn.account_search.SearchOwner`."""
        self._place = choice.lease
        self._at(choice.account, choice.rule, choice)

    def search_waits(self, lack: WaitReason) -> None:
        """See :class:`~gateway.turn.account_search.SearchOwner`."""
        self._log.waits(lack)

    def search_failed(self, error: ApiError) -> None:
        """See :class:`~gateway.turn.account_search.SearchOwner`."""
        self._end(error)

    def _at(self, account: Account, rule: str, choice: Selection | None = None) -> None:
        self.account = account
        self._enter(ProxiedRequestState.SENT)
        self._status, self._headers, self._held = 0, {}, bytearray()
        try:
            call = self._spec.call_for(account)
        except Exception:
            _logger.failure("a request could not be made for {account}", account=account.name)
            self._end(ApiError.gateway_failed())
            return
        spec = self._spec
        self._log.tries(account.name, rule, spec.what, len(call.body or b""), spec.plan, choice)
        self._call = account.upstream.forward(call, self)
        if self._paused:
            self._call.pause()
        self._call.start()

    # --- what the call reports -------------------------------------------------------

    def upstream_connected(self) -> None:
        """See :class:`~gateway.upstream.interface.BodyReceiver`."""
        self._log.connected()

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """See :class:`~gateway.upstream.interface.BodyReceiver`."""
        assert self.account is not None
        self._status, self._headers = status, headers
        self._log.answered()
        windows = read_windows(headers, self._services.clock.seconds())
        if windows:
            self.account.health.observe(windows)
        if not 200 <= status < 300:
            self._enter(ProxiedRequestState.REFUSED)
            return
        if self._spec.held_bytes or (self._spec.generates and _is_json(headers)):
            self._enter(ProxiedRequestState.HELD)
        else:
            self._relay()

    def upstream_data(self, data: bytes) -> None:
        """See :class:`~gateway.upstream.interface.BodyReceiver`."""
        if self._state is ProxiedRequestState.RELAYING:
            self._relay_data(data)
            return
        self._held += data
        if self._state is not ProxiedRequestState.HELD:
            return
        if not self._spec.held_bytes:
            if len(self._held) > _MAX_ERROR_BYTES or not may_be_bare_error(self._held):
                self._relay()
                self._relay_data(bytes(self._held))
        elif len(self._held) > self._spec.held_bytes:
            self._end(ApiError.bad_gateway("The upstream's answer is longer than it may be."))

    def upstream_ended(self, error: ApiError | None) -> None:
        """See :class:`~gateway.upstream.interface.BodyReceiver`."""
        self._call = None
        if self._state is ProxiedRequestState.REFUSED:
            error = from_http(self._status, self._headers, bytes(self._held))
        elif self._state is ProxiedRequestState.HELD and error is None and self._spec.generates:
            assert self.account is not None
            said = self.account.upstream.without_secrets(bytes(self._held))
            error = from_answer(self._status, self._headers, said)
        if error is None:
            if self._state is ProxiedRequestState.HELD:
                self._relay()
                self._relay_data(bytes(self._held))
            self._end(None)
        elif self._state is ProxiedRequestState.RELAYING:
            self._let_rest(error)
            self._end(error)
        else:
            self._refused(error)

    def _relay(self) -> None:
        """What came is no error in the place of an answer: the account took the request."""
        assert self.account is not None
        self._enter(ProxiedRequestState.RELAYING)
        self._place.answered()
        self._spec.accepted(self.account)
        if self._spec.generates:
            self._place.acknowledged()
        self._relayed = True
        self._log.first_event()
        self._log.first_output()
        self._door.passage_answers(self._status, self._headers)

    def _relay_data(self, data: bytes) -> None:
        self.record.relayed_bytes += len(data)
        self._door.passage_relays(data)

    def _refused(self, error: ApiError) -> None:
        """Nothing was seen of this attempt: send it once more, move, or tell the client."""
        account = self.account
        assert account is not None
        assert self._itinerary is not None
        error = self._spec.translated(error)
        self._log.outcome(error.label)
        if self._spec.mended(account, error):
            self._enter(ProxiedRequestState.SEEKING)
            self._at(account, SAME_ACCOUNT)
            return
        self._let_rest(error)
        self._give_back()
        if not self._spec.may_move(error):
            self._end(for_the_client(error))
            return
        self._itinerary.refused(account, error)
        self._enter(ProxiedRequestState.SEEKING)
        self._seek()

    def _let_rest(self, error: ApiError) -> None:
        """Let whoever is at fault rest (design law 13)."""
        fault = self._fault(error)
        if fault is not None:
            assert self.account is not None
            self.account.failures += 1
            self._place.refused(fault)

    def _fault(self, error: ApiError) -> Fault | None:
        """Whose fault it is; a path that an account does not serve is nobody's.

        So it may be where no reason is clear, or none is given but by what stands before the API.
        """
        assert self.account is not None
        fault = self._blame.fault_of(self.account, error)
        if fault.kind in (FaultKind.REQUEST, FaultKind.UNCLEAR):
            return None
        not_served = self._status in NOT_SERVED and fault.kind is not FaultKind.MODEL_REFUSED
        return None if not_served else fault

    # --- ending ----------------------------------------------------------------------

    def _end(self, error: ApiError | None) -> None:
        if error is None:
            self._close("completed", None)
        else:
            self._close("error", error.label)
        self._door.passage_ended(error)

    def _close(self, status: str, error_code: str | None) -> None:
        self._enter(ProxiedRequestState.ENDED)
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._count()
        if self.account is not None and self._spec.generates:
            self.account.turns += 1
        self._give_back()
        itinerary, self._itinerary = self._itinerary, None
        if itinerary is not None:
            itinerary.stop()
        self._log.closed(status, error_code)

    def _count(self) -> None:
        """What was answered is counted, also where it broke off, or did not say what it took."""
        if not self._relayed:
            return
        usage = self._door.passage_usage()
        if usage is not None:
            self._log.counts(usage)
        elif self._spec.generates:
            usage = self._log.estimated()
        visit = None if self._itinerary is None else self._itinerary.visit
        if usage is not None and visit is not None:
            visit.used(usage)

    def _give_back(self) -> None:
        """Free the place on the account; others may wait for it."""
        place, self._place = self._place, NoPlace()
        place.release()

    def _enter(self, state: ProxiedRequestState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"a passage cannot go from {self._state} to {state}")
        self._state = state


def _is_json(headers: Mapping[str, str]) -> bool:
    """Whether an answer comes in one piece, and so may be an error in the place of one."""
    return headers.get("content-type", "").strip().lower().startswith("application/json")
