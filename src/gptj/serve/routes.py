"""Every route: what it takes, what it gives, and an example of both for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from gptj.serve import examples, kobold_models, original
from gptj.serve.adapters import LoadRequest, Unloaded, UnloadRequest, load, unload
from gptj.serve.chat import ChatJob
from gptj.serve.completions import Job
from gptj.serve.document import (
    ASKING,
    LOADING,
    KoboldError,
    OpenAIError,
    OriginalError,
    answer,
    events,
    refusals,
    text,
)
from gptj.serve.kobold import Kobold, check_stream
from gptj.serve.metrics import CONTENT_TYPE, Metrics
from gptj.serve.openai_answers import ChatResponse, CompletionResponse
from gptj.serve.openai_requests import ChatRequest, CompletionRequest, Sampling
from gptj.serve.original import Original
from gptj.serve.refusal import Json, Refused
from gptj.serve.service import Service
from gptj.serve.streams import EventStream, event, unless_gone
from gptj.serve.tokens import (
    Detokenized,
    DetokenizeRequest,
    Model,
    Models,
    State,
    Tokenized,
    TokenizeRequest,
    detokenize,
    model_card,
    tokenize,
)

openai = APIRouter(tags=["OpenAI"])
adapters = APIRouter(tags=["Adapters"])
tokens = APIRouter(tags=["Tokens"])
own = APIRouter(tags=["The original's"])
story = APIRouter(tags=["KoboldAI"])
operating = APIRouter(tags=["Operating"])


def service_of(http: Request) -> Service:
    """What every route works with."""
    found: Service = http.app.state.service
    return found


def _shown(example: Any) -> Any:
    return Body(openapi_examples={"example": {"value": example}})


def _openai_fault(refused: Refused) -> str:
    return event(OpenAIError.model_validate(refused.body("/v1/")))


def _kobold_fault(refused: Refused) -> str:
    return event(KoboldError.model_validate(refused.body("/api/")), "error")


async def _answer(job: Job | ChatJob, asked: Sampling, http: Request) -> Response:
    service_of(http).check_open()
    await job.prepare()
    if asked.stream:
        return EventStream(job.events(), _openai_fault)
    return Json(await unless_gone(http.receive, job.whole()))


@openai.post(
    "/v1/completions",
    response_class=Json,
    responses=answer(
        CompletionResponse, "Answers, or with `stream` their pieces as events.",
        examples.COMPLETION, examples.COMPLETION_STREAM,
    ) | refusals(OpenAIError, *ASKING),
)  # fmt: skip
async def create_completion(
    asked: Annotated[CompletionRequest, _shown(examples.COMPLETION_REQUEST)], http: Request
) -> Response:
    """Write on from prompts."""
    return await _answer(Job(service_of(http), http, asked), asked, http)


@openai.post(
    "/v1/chat/completions",
    response_class=Json,
    responses=answer(
        ChatResponse, "Answers, or with `stream` their pieces as events.",
        examples.CHAT, examples.CHAT_STREAM,
    ) | refusals(OpenAIError, *ASKING),
)  # fmt: skip
async def create_chat_completion(
    asked: Annotated[ChatRequest, _shown(examples.CHAT_REQUEST)], http: Request
) -> Response:
    """Say what comes next in a chat."""
    return await _answer(ChatJob(service_of(http), http, asked), asked, http)


@openai.get(
    "/v1/models",
    response_class=Json,
    responses=answer(Models, "The model, and its adapters.", examples.MODELS)
    | refusals(OpenAIError),
)
async def list_models(http: Request) -> Response:
    """List the model, and the adapters that answer beside it."""
    service = service_of(http)
    cards = [model_card(service, service.voice(name)) for name in (None, *service.adapters)]
    return Json(Models(object="list", data=cards))


@openai.get(
    "/v1/models/{model:path}",
    response_class=Json,
    responses=answer(Model, "The model.", examples.MODEL) | refusals(OpenAIError, 404),
)
async def retrieve_model(model: str, http: Request) -> Response:
    """Say what a model is."""
    return Json(model_card(service_of(http), service_of(http).voice(model)))


@adapters.post(
    "/v1/load_lora_adapter",
    response_class=Json,
    responses=answer(Model, "It answers.", examples.ADAPTER) | refusals(OpenAIError, *LOADING),
)
async def load_adapter(
    asked: Annotated[LoadRequest, _shown(examples.LOAD_REQUEST)], http: Request
) -> Response:
    """Load an adapter from this machine's disk; requests that name it as `model` get it."""
    return Json(model_card(service_of(http), await load(service_of(http), asked)))


@adapters.post(
    "/v1/unload_lora_adapter",
    response_class=Json,
    responses=answer(Unloaded, "It takes no more requests.", examples.UNLOADED)
    | refusals(OpenAIError, *LOADING),
)
async def unload_adapter(
    asked: Annotated[UnloadRequest, _shown(examples.UNLOAD_REQUEST)], http: Request
) -> Response:
    """Unload an adapter; the requests under way keep it."""
    return Json(await unload(service_of(http), asked))


@tokens.post(
    "/tokenize",
    response_class=Json,
    responses=answer(Tokenized, "The tokens.", examples.TOKENIZED)
    | refusals(OpenAIError, 400, 404),
)
async def tokenize_text(
    asked: Annotated[TokenizeRequest, _shown(examples.TOKENIZE_REQUEST)], http: Request
) -> Response:
    """Turn text into token ids."""
    return Json(await tokenize(service_of(http), asked))


@tokens.post(
    "/detokenize",
    response_class=Json,
    responses=answer(Detokenized, "The text.", examples.DETOKENIZED)
    | refusals(OpenAIError, 400, 404),
)
async def detokenize_ids(
    asked: Annotated[DetokenizeRequest, _shown(examples.DETOKENIZE_REQUEST)], http: Request
) -> Response:
    """Turn token ids into text."""
    return Json(await detokenize(service_of(http), asked))


@own.post(
    "/complete",
    response_class=Json,
    responses=answer(original.CompleteResponse, "What follows.", examples.COMPLETE)
    | refusals(OriginalError, *ASKING),
)
async def complete(
    asked: Annotated[original.CompleteRequest, _shown(examples.COMPLETE_REQUEST)], http: Request
) -> Response:
    """Write on from a text, as the original's server did."""
    own_protocol: Original = http.app.state.original
    service_of(http).check_open()
    return Json(await unless_gone(http.receive, own_protocol.complete(http, asked)))


@own.post(
    "/model/predict",
    response_class=Json,
    responses=answer(original.PredictResponse, "Its number.", examples.PREDICT)
    | refusals(OriginalError, *ASKING),
)
async def predict(
    asked: Annotated[original.PredictRequest, _shown(examples.PREDICT_REQUEST)], http: Request
) -> Response:
    """Begin to write on from a text; /model/get_prediction has the answer."""
    own_protocol: Original = http.app.state.original
    service_of(http).check_open()
    return Json(await own_protocol.predict(http, asked))


@own.post(
    "/model/get_prediction",
    response_class=Json,
    responses=answer(original.PredictionResponse, "The prediction.", examples.PREDICTION)
    | refusals(OriginalError, 400, 404, 500, 503),
)
async def get_prediction(
    asked: Annotated[original.PredictionRequest, _shown({"qid": 1})], http: Request
) -> Response:
    """Wait for a prediction, and fetch it; once."""
    own_protocol: Original = http.app.state.original
    return Json(await unless_gone(http.receive, own_protocol.fetch(http, asked)))


@story.post(
    "/api/v1/generate",
    response_class=Json,
    responses=answer(kobold_models.GenerateResponse, "Answers.", examples.GENERATE)
    | refusals(KoboldError, *ASKING),
)
async def generate(
    asked: Annotated[kobold_models.GenerateRequest, _shown(examples.GENERATE_REQUEST)],
    http: Request,
) -> Response:
    """Go on with a story."""
    kobold: Kobold = http.app.state.kobold
    service_of(http).check_open()
    request = await kobold.prepare(http, asked)
    return Json(await unless_gone(http.receive, kobold.whole(http, asked, request)))


@story.post(
    "/api/extra/generate/stream",
    response_class=Response,
    responses=events("The answer in pieces.", examples.GENERATE_STREAM)
    | refusals(KoboldError, *ASKING),
)
async def generate_stream(
    asked: Annotated[kobold_models.GenerateRequest, _shown(examples.GENERATE_REQUEST)],
    http: Request,
) -> Response:
    """Go on with a story, as events."""
    kobold: Kobold = http.app.state.kobold
    service_of(http).check_open()
    check_stream(asked)
    request = await kobold.prepare(http, asked)
    return EventStream(kobold.events(http, asked, request), _kobold_fault)


@story.post(
    "/api/extra/abort",
    response_class=Json,
    responses=answer(kobold_models.AbortResponse, "Whether one was.", examples.ABORT)
    | refusals(KoboldError, 400),
)
async def abort(
    http: Request,
    asked: Annotated[kobold_models.AbortRequest | None, _shown({"genkey": "KCPP1234"})] = None,
) -> Response:
    """End a generation; who waits for it gets what was written."""
    kobold: Kobold = http.app.state.kobold
    return Json(kobold.abort(http, asked or kobold_models.AbortRequest()))


@story.get(
    "/api/v1/model",
    response_class=Json,
    responses=answer(kobold_models.Result, "Its name.", {"result": "gpt-j-6b"})
    | refusals(KoboldError),
)
async def kobold_model(http: Request) -> Response:
    """Say which model is here."""
    return Json(kobold_models.Result(result=service_of(http).name))


@operating.get(
    "/health",
    response_class=Json,
    responses=answer(State, "The server is alive.", {"status": "alive"})
    | refusals(OpenAIError, 500),
)
async def health(http: Request) -> Response:
    """Say whether the server is alive."""
    if service_of(http).worker.failure:
        raise Refused(500, "the engine has stopped: see the server's log")
    return Json(State(status="alive"))


@operating.get(
    "/ready",
    response_class=Json,
    responses=answer(State, "Requests are answered.", {"status": "ready"})
    | refusals(OpenAIError, 503),
)
async def ready(http: Request) -> Response:
    """Say whether requests are answered: not before the warm-up, and not while draining."""
    service_of(http).check_ready()
    return Json(State(status="ready"))


@operating.get(
    "/metrics",
    response_class=Response,
    responses=text("Prometheus' text format.", "text/plain", examples.METRICS)
    | refusals(OpenAIError),
)
async def metrics(http: Request) -> Response:
    """Say how the server is doing, in figures."""
    found: Metrics = http.app.state.metrics
    return Response(found.text(), media_type=CONTENT_TYPE)
