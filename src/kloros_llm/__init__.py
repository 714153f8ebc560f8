"""What stays on the host when Ansible has left; `core` is what the collection's modules share.

The client library's names are here. Each is imported when it is first used: `modelctl` runs from
the bare wheel, with Python alone, and the library needs `requests`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import LlamaAdapter as LlamaAdapter
    from .endpoints import LLMMode as LLMMode
    from .endpoints import LLMService as LLMService
    from .endpoints import get_llm_url as get_llm_url
    from .errors import LlmAuthenticationError as LlmAuthenticationError
    from .errors import LlmBusyError as LlmBusyError
    from .errors import LlmConfigurationError as LlmConfigurationError
    from .errors import LlmConnectionError as LlmConnectionError
    from .errors import LlmContextError as LlmContextError
    from .errors import LlmError as LlmError
    from .errors import LlmHttpError as LlmHttpError
    from .errors import LlmInterruptedError as LlmInterruptedError
    from .errors import LlmLoadingError as LlmLoadingError
    from .errors import LlmModelNotFoundError as LlmModelNotFoundError
    from .errors import LlmProtocolError as LlmProtocolError
    from .errors import LlmTimeoutError as LlmTimeoutError
    from .errors import LlmUnsupportedError as LlmUnsupportedError
    from .errors import LlmUsageError as LlmUsageError
    from .errors import ModelError as ModelError
    from .gateway.engines.pieces import Ending as Ending
    from .gateway.engines.pieces import ToolCall as ToolCall
    from .generation import Answer as Answer
    from .health import Health as Health
    from .health import check_llama_health as check_llama_health
    from .llm_router import LLMRouter as LLMRouter
    from .llm_router import get_router as get_router
    from .model_manager import ModelManager as ModelManager
    from .reasoning import create_reasoning_backend as create_reasoning_backend
    from .reasoning_backend import ReasoningBackend as ReasoningBackend
    from .reasoning_backend import ReasoningResult as ReasoningResult
    from .reranking import Ranked as Ranked
    from .speech import SentenceSplitter as SentenceSplitter
    from .speech import SentenceStream as SentenceStream
    from .speech import sentences as sentences
    from .text_stream import TextStream as TextStream
    from .timeouts import Timeouts as Timeouts

_MODULES = {
    "LlamaAdapter": "adapter",
    "LLMMode": "endpoints",
    "LLMService": "endpoints",
    "get_llm_url": "endpoints",
    "LlmAuthenticationError": "errors",
    "LlmBusyError": "errors",
    "LlmConfigurationError": "errors",
    "LlmConnectionError": "errors",
    "LlmContextError": "errors",
    "LlmError": "errors",
    "LlmHttpError": "errors",
    "LlmInterruptedError": "errors",
    "LlmLoadingError": "errors",
    "LlmModelNotFoundError": "errors",
    "LlmProtocolError": "errors",
    "LlmTimeoutError": "errors",
    "LlmUnsupportedError": "errors",
    "LlmUsageError": "errors",
    "ModelError": "errors",
    "Ending": "gateway.engines.pieces",
    "ToolCall": "gateway.engines.pieces",
    "Answer": "generation",
    "Health": "health",
    "check_llama_health": "health",
    "LLMRouter": "llm_router",
    "get_router": "llm_router",
    "ModelManager": "model_manager",
    "create_reasoning_backend": "reasoning",
    "ReasoningBackend": "reasoning_backend",
    "ReasoningResult": "reasoning_backend",
    "Ranked": "reranking",
    "SentenceSplitter": "speech",
    "SentenceStream": "speech",
    "sentences": "speech",
    "TextStream": "text_stream",
    "Timeouts": "timeouts",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "requests":
            raise
        raise ImportError(
            f"{__name__}.{name} needs the package requests: pip install requests"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
