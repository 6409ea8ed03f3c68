"""Sentences about classes from a causal language model, for zero-shot: CuPL [Pratt 2022, arXiv 2209.03320].

The model is asked what each class looks like; the first sentence of each answer is kept.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from omma.core.errors import line, need
from omma.core.words import class_words

QUESTIONS = (  # the paper's for ImageNet, from its code
    "Describe what {} looks like",
    "How can you identify {}?",
    "What does {} look like?",
    "Describe an image from the internet of {}",
    "A caption of an image of {}:",
)
LONGEST = 50  # tokens of an answer
TEMPERATURE = 0.99  # the paper's


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model of transformers, with its tokenizer."""

    name: str
    network: Any
    tokenizer: Any

    @torch.inference_mode()
    def answers(self, question: str, count: int, temperature: float, seed: int) -> list[str]:
        """Answers to a question; the likeliest words alone, and one answer, at temperature 0.

        Random numbers depend on `seed` alone.
        """
        device, tokenizer = self.network.device, self.tokenizer
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": question}]
            question = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        # a chat template writes the special tokens itself
        inputs = tokenizer(question, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
            sampling["num_return_sequences"] = count
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            rows = self.network.generate(
                **inputs.to(device), max_new_tokens=LONGEST, pad_token_id=tokenizer.eos_token_id, **sampling
            )
        length = inputs["input_ids"].shape[1]
        return tokenizer.batch_decode(rows[:, length:], skip_special_tokens=True)


def load(model: str, device: torch.device) -> LanguageModel:
    """Load a folder of transformers, a .gguf file or `hf:ORG/NAME`.

    Raises ValueError, in one line, if a package is missing or it is no causal language model.
    """
    transformers = need("transformers", "hf")
    name, options = model.removeprefix("hf:"), {}
    gguf = name.endswith(".gguf")
    if gguf:
        need("gguf", "hf")
        options["gguf_file"] = os.path.basename(name)
        name = os.path.dirname(name) or "."
    # its progress bars cannot be switched off
    quiet = contextlib.redirect_stderr(io.StringIO()) if gguf else contextlib.nullcontext()
    try:
        with quiet:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            network = transformers.AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"{model} cannot be loaded as a causal language model ({line(error)}); give a folder of "
            "transformers, a .gguf file or hf:ORG/NAME"
        ) from error
    if device.type == "cpu" and not gguf:  # which is read as fp32
        network = network.float()
    return LanguageModel(model, network.to(device).eval(), tokenizer)


def sentence(answer: str) -> str:
    """The first sentence of an answer on one line, with a full stop; "" if there is none."""
    words = " ".join(answer.split(".")[0].split()).strip("\"'*#->: ")
    return words + "." if words else ""


def phrase(name: str) -> str:
    """The class's name with its article: "a sea lion", "an owl"."""
    words = class_words(name)
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def sentences(
    model: LanguageModel,
    name: str,
    questions: Sequence[str] = QUESTIONS,
    *,
    answers: int = 10,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[str]:
    """Sentences about a class: `answers` to each question, without empty ones.

    They depend on the seed and the class's name alone, not on the classes before. Raises ValueError if there
    is not one.
    """
    own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4])
    made = [
        sentence(answer)
        for number, question in enumerate(questions)
        for answer in model.answers(question.replace("{}", phrase(name)), answers, temperature, own + number)
    ]
    if not any(made):
        raise ValueError(f"{model.name} answers nothing about {name!r}: choose another language model")
    return [each for each in made if each]
