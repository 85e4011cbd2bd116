"""Amounts of resources, as people write and read them: `gpus=16,gpus:A100=8,cpus=64`.

On the wire they are milli-CPU, MiB and thousandths of GPUs by the names of the contract.
"""

from collections.abc import Mapping

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.quantities import memory_text, milli_text, parse_cpu_milli, parse_memory_mib

_NAMES = {"cpus": "cpu_milli", "memory": "memory_mib", "gpus": "gpu_milli"}
_OF_TYPE = "gpus:"
_RULE = "write cpus=64, memory=512Gi, gpus=16 or gpus:A100=8"


def parse_amounts(text: str, option: str) -> dict[str, int]:
    """Return amounts by resource of the wire; of `none`, none."""
    amounts: dict[str, int] = {}
    for part in text.split(",") if text not in {"", "none"} else ():
        name, equals, value = part.strip().partition("=")
        gpu_type = name.removeprefix(_OF_TYPE)
        is_typed = name.startswith(_OF_TYPE) and gpu_type != ""
        if not equals or not (is_typed or name in _NAMES):
            raise CommandError(f"--{option}: {part!r}? {_RULE}", code=ExitCode.USAGE)
        parse = parse_memory_mib if name == "memory" else parse_cpu_milli
        try:
            amount = parse(value)
        except ValueError as error:
            raise CommandError(f"--{option} {name}: {error}", code=ExitCode.USAGE) from None
        amounts[f"gpu_milli:{gpu_type}" if is_typed else _NAMES[name]] = amount
    return amounts


def amounts_text(amounts: Mapping[str, float]) -> str:
    """Return amounts as `parse_amounts` reads them, those of GPUs first."""
    texts = []
    words = {wire: word for word, wire in _NAMES.items()}
    for name in sorted(amounts, key=lambda name: (not name.startswith("gpu"), name)):
        word = words.get(name) or name.replace("gpu_milli:", _OF_TYPE)
        value = round(amounts[name])
        texts.append(f"{word}={memory_text(value) if word == 'memory' else milli_text(value)}")
    return ",".join(texts)


def borrowed(used: Mapping[str, int], guaranteed: Mapping[str, int]) -> dict[str, int]:
    """Return what is used beyond the guarantee, of the resources that it names."""
    over = {name: used.get(name, 0) - amount for name, amount in guaranteed.items()}
    return {name: amount for name, amount in over.items() if amount > 0}
