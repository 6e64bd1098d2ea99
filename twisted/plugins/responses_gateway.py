"""Makes `twistd responses-gateway` known; the service itself is `gateway.tap`."""

from twisted.application.service import ServiceMaker

responsesGateway = ServiceMaker(
    "Responses gateway",
    "gateway.tap",
    "A gateway for the OpenAI Responses API: WebSocket clients, HTTP upstreams, one conversation.",
    "responses-gateway",
)
