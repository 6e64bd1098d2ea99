"""The meaning of an upstream's error message, if no code or status gives it.

Services word the same refusal differently, and wrap the messages of services behind them.  A
wording counts only at the beginning of the message, after the prefixes of wrappers.  Later text may
quote the request, and must not decide which party is at fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable

#: How much of a message is read, in characters.
_READ = 1_000

#: What wrappers put before a message: ``litellm.BadRequestError: OpenAIException - ``.
_WRAPPED = r"(?:[\w.]{0,80}(?:error|exception)(?: code)?(?:\s*[:\-](?: ?\d{3}\b)?)+\s*)*"

#: Objects that a request refers to and an upstream may not have.
_NAMED = (
    r"(?:assistant|attachment|batch|connector|container|conversation|file|image|input item|item"
    r"|mcp server|prompt|prompt template|skill|thread|tool|upload|vector[ _]store|video)s?"
)

_NOT_THERE = (
    r"(?:not found|not be found|not exist|no longer exists?|not available|unavailable|expired"
    r"|deleted|missing|locked|invalid|not accessible|not belong|not ready|not supported)"
)

_MODEL = r"['\"`]?(?!(?:not|does|was|is)\b)([^\s'\"`,]+?)['\"`]?"
_END = r"(?:\.?\s*$|\.\s)"


def _pattern(*wordings: str) -> re.Pattern[str]:
    return re.compile(rf"\s*{_WRAPPED}(?:{'|'.join(wordings)})", re.IGNORECASE)


def _opening(*wordings: str) -> Callable[[str], bool]:
    """Whether a message opens with one of ``wordings``."""
    match = _pattern(*wordings).match
    return lambda message: match(message, 0, _READ) is not None


#: The request is longer than what the model reads; said anywhere, as no request quotes it.
_TOO_LONG = re.compile(
    r"context[ _](?:length|window|size)(?![a-z])|(?:max|maximum) context\b|maximum (?:input|prompt"
    r"|sequence) length|(?:prompt|input) (?:is|was) too long|too many (?:input )?tokens in",
    re.IGNORECASE,
)

_names_its_request = _opening(
    r"(?:(?:the|this|your|no|no such) )?"
    rf"{_NAMED}\b(?: object)?(?: with(?: the)?)?(?: (?:id|name|named|url))?[ :]"
    rf".{{0,200}}?\b{_NOT_THERE}\b",
    rf"(?:no|no such|unknown) {_NAMED}\b",
    r"(?!(?:the )?(?:previous )?(?:response|model|deployment|engine)\b)"
    r"[a-z][a-z _]{1,40} with (?:the )?id .{1,200}? not found",
    rf".{{0,100}}\b(?:access to|download|fetch|open|read|retrieve) (?:the |this )?{_NAMED}\b",
    rf"error (?:while )?(?:downloading|fetching|opening|reading|retrieving) (?:the )?{_NAMED}\b",
    r"(?:invalid|bad|malformed|unsupported|unknown|unrecognized|missing)\b.{0,40}?\b"
    r"(?:argument|base64|enum|field|file|format|function|image|input|mime type|parameter|prompt"
    r"|property|request|role|schema|tool|tool_choice|type|value)s?\b",
    r"(?:invalid|unsupported|unknown|missing required) ['\"`]",
    r"\d+ validation errors?\b",
    r"(?:failed|unable) to (?:parse|decode|deserialize|validate|convert)\b",
    r"no tool (?:call|output) found",
    r"no endpoints found that\b",
)

#: The account does not have the response to continue; xAI says it without a code or a status.
misses_response = _opening(
    r"(?:previous )?response with (?:the )?id\b.{1,200}? (?:was |could )?not (?:be )?found"
)

#: A code that stands before the words: ``rate_limit_exceeded: Slow down``.
_CODE = _pattern(r"['\"`(\[]?([a-z]{1,40}(?:_[a-z]{1,40}){1,9})\b")

#: The service is too busy.
overloaded = _opening(
    r"overloaded\b",
    r"(?:(?:our|the|that|this|all|selected|upstream|backend) )*"
    r"(?:api|backend|capacity|engine|model|provider|servers?|service|system|upstream)s?\b"
    r"[^'\"`.:]{0,60}\b(?:overloaded|overload|at capacity|over capacity|too busy|is busy|are busy)",
    r"(?:we(?: are|'re)|the (?:service|server|model|api|system) is) (?:currently )?experiencing"
    r" (?:high|heavy|unusually high)",
)

#: The account's quota, credit or budget is used up.
spent = _opening(
    r"you(?:'ve| have)? (?:exceeded|reached|hit|used up) (?:your|the) (?:current |monthly |daily"
    r" |weekly |usage |spending |plan )*(?:quota|credits?|limit|budget|allowance)",
    r"(?:your |this )?(?:credit )?balance is (?:too low|insufficient|not enough|exhausted)",
    r"your credit balance is too low",
    r"insufficient (?:account )?(?:balance|credits?|funds|quota)\b",
    r"(?:the )?billing hard limit has been reached",
    r"(?:you are )?out of credits\b",
    r"(?:the |your )?(?:monthly |usage |spending |account )*(?:quota|budget|spend(?:ing)? limit"
    r"|usage limit) (?:has been |is |was )?(?:exceeded|reached|exhausted|used up)",
    r"budget has been exceeded",
    r"this request requires more credits",
)

#: The account asked too often.
rate_limited = _opening(
    r"(?:you(?:'ve| have)? (?:exceeded|reached|hit) (?:your|the) )?(?:request |token )?rate limit",
    r"too many requests\b",
    r"no deployments available for selected model",
)

#: The account's key or token is refused, or the account itself.
bad_credentials = _opening(
    r"(?:incorrect|invalid|expired|revoked|wrong|missing) (?:api|access|auth\w*|bearer) ?-?"
    r"(?:key|token)\b",
    r"(?:the |your )?(?:provided )?(?:api|access|bearer) ?-?(?:key|token)\b[^'\"`.:]{0,60}"
    r"\b(?:not valid|invalid|expired|revoked|disabled|deactivated|incorrect|not found)",
    r"(?:the |your |this )?(?:account|organization|project|user|workspace)\b[^'\"`.:]{0,60}"
    r"\b(?:deactivated|disabled|suspended|banned|terminated|blocked|locked)",
    r"(?:country, region, or territory|your region is) not supported",
)

#: The account does not offer a model.
_NO_SUCH_MODEL = _pattern(
    r"(?:the )?(?:requested |specified |provided )?model:?(?: with)?(?: (?:the )?(?:id|name))?"
    rf" {_MODEL} (?:(?:does|do|did|could|was|is|has|may)(?: not|n't)? )?"
    r"(?:not found|found|exist\b|be found|not available|available|not exist|accessible|served"
    r"|loaded|deployed|been decommissioned|been deprecated|been disabled|a valid model"
    r"|supported (?:when|by|for this account))",
    rf"the {_MODEL} model (?:does not exist|is not supported|is not available)",
    r"(?:the )?(?:requested |specified |provided )?model (?:does not exist|not found|not exist"
    r"|was not found|is not available|identifier is invalid|not supported\b)",
    r"(?:no such|unknown|unavailable|invalid|unsupported) model(?: name)?(?: id)?"
    rf"(?: passed in model=|:? ){_MODEL}{_END}",
    rf"{_MODEL} is not a valid model",
    rf"no endpoints found for {_MODEL}{_END}",
    r"no allowed providers are available for the selected model",
    r"no models? (?:is |are )?loaded",
    rf"unable to access model {_MODEL}{_END}",
    r"the api deployment for this resource does not exist",
    r"(?:the )?(?:\w+ )?operation does not work with the specified model",
    r"(?:key|team|user|project|organization|you)\b[^.:]{0,80}?(?:not allowed to|(?:does|do)"
    r" (?:not|n't) have|don't have|have no|has no) access (?:to )?(?:the )?model"
    rf":?(?: {_MODEL}{_END})?",
)


def leading_code(message: str) -> str | None:
    """The code that the message opens with, or what may be one."""
    found = _CODE.match(message, 0, _READ)
    return None if found is None else found[1].lower()


def too_long(message: str) -> bool:
    """Whether the request is longer than the model's context."""
    return _TOO_LONG.search(message, 0, _READ) is not None


def about_the_request(message: str) -> bool:
    """Whether it speaks of what the request holds or names, not of the account or the model."""
    return too_long(message) or (_names_its_request(message) and not no_such_model(message))


def no_such_model(message: str) -> bool:
    """Whether the account does not offer a model."""
    return _NO_SUCH_MODEL.match(message, 0, _READ) is not None


def named_model(message: str) -> str | None:
    """The model that a message of :func:`no_such_model` names, or None."""
    found = _NO_SUCH_MODEL.match(message, 0, _READ)
    return None if found is None else next(filter(None, found.groups()), None)
