"""A policy's rules as CUDA C++, in front of a kernel's text."""

from __future__ import annotations

from h2osim.policies.declaration import Policy
from h2osim.policies.expressions import FLOAT, WHOLE, Untranslatable
from h2osim.policies.roles import COMPILED, NOW, ROLES, arguments
from h2osim.policies.to_numba import number_slots
from h2osim.policies.translator import Module

#: How kernels pass a rule's arguments (int unless listed), and the type of its result.
_DECLARED = {
    "state": "double *s",
    "inputs": "const double *in",
    "ints": "const int *ip",
    "floats": "const double *fp",
    "pos": "int j",
    "a": "double a",
    "a_old": "double a_old",
}
_RESULTS = {"state": "void", "float": "double", "int": "int", "bool": "bool"}

#: Texts by the id of the policy, which the entry keeps alive; a policy holds dicts and has no hash.
_KNOWN: dict[int, tuple[Policy, str]] = {}


def rules_text(policy: Policy) -> str:
    """CUDA C++ of a policy's rules, to stand in front of a kernel's text.

    Defines ``rule_init``, ``rule_update``, ``rule_rank``, ``rule_keep``, ``rule_visible`` and
    ``rule_linger``, and the macros F (fields of state), NI and NF (whole and fractional
    parameters), NIN (inputs), HIDES, LINGERS and EXPIRES. Raises :class:`Untranslatable`.
    """
    if id(policy) in _KNOWN:
        return _KNOWN[id(policy)][1]
    if policy.rank_cache is not None:
        raise Untranslatable(
            f"policy {policy.name}: its rank looks at the whole cache (rank_cache), which can not "
            "be translated to CUDA; engine=numba runs it"
        )
    if policy.rank_batch is not None:
        raise Untranslatable(
            f"policy {policy.name}: its rule rank_batch runs in Python, whatever the engine"
        )
    seen = [*policy.vectors, *policy.vector_state]
    if seen or policy.means:
        what = f"vectors ({', '.join(seen)})" if seen else "means over the cache"
        raise Untranslatable(
            f"policy {policy.name}: its rules see {what}, which the GPU does not take; "
            "engine=numba runs it"
        )
    module = Module(policy.name)
    roles = [role for role in COMPILED if ROLES[role].about != "cache"]
    wrappers = [_wrapper(policy, role, module) for role in roles]
    ints, floats = number_slots(policy)
    macros = {
        "F": len(policy.state),
        "NI": len(ints),
        "NF": len(floats),
        "NIN": len(policy.inputs),
        "HIDES": int(policy.visible is not None),
        "LINGERS": int(policy.linger is not None),
        "EXPIRES": int(policy.expires),
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    text = defines + "".join(module.texts) + "".join(wrappers)
    _KNOWN[id(policy)] = policy, text
    return text


def _wrapper(policy: Policy, role: str, module: Module) -> str:
    """The device function that kernels call for a role."""
    about, rule, fields = ROLES[role], policy.rules().get(role), len(policy.state)
    given = [_DECLARED.get(name, f"int {name}") for name in about.parameters]
    if about.gives != "state":
        given = [text.replace("double *s", "const double *s") for text in given]
    head = f"DEVICE {_RESULTS[about.gives]} rule_{role}({', '.join(given)}) {{ "
    if role == "keep":
        head += "if (t != p - 1 && (ip[0] == 0 || (t - p + 1) % ip[0] != 0)) return size; "
    if rule is None:
        body = "" if about.default is None else f"return {str(about.default).lower()};"
        if role == "init":
            body = " ".join(f"s[{i}] = 0.0;" for i in range(fields))
        return f"{head}{body} }}\n"
    ints, floats = number_slots(policy)
    known = {name: (name, WHOLE) for name in about.parameters}
    known |= {"pos": ("j", WHOLE), "age": ("(t - j)", WHOLE)}
    known |= {"a": ("a", FLOAT), "a_old": ("a_old", FLOAT)}
    known |= {name: (f"ip[{i}]", WHOLE) for i, name in enumerate(ints)}
    known |= {name: (f"fp[{i}]", FLOAT) for i, name in enumerate(floats)}
    known |= {name: (f"s[{i}]", FLOAT) for i, name in enumerate(policy.state)}
    for i, name in enumerate(policy.inputs):
        known[name] = f"in[(long long){i} * n + j]", FLOAT
        known[name + NOW] = f"in[(long long){i} * n + t]", FLOAT
    texts = [known[name][0] for name in arguments(rule)]
    kinds = tuple(known[name][1] for name in arguments(rule))
    many = fields if about.gives == "state" and fields > 1 else 1
    name, kind = module.function(rule, kinds, many)
    call = f"{name}({', '.join(texts)})"
    if many > 1:  # the old state is read before the new is written
        results = [f"r{i}" for i in range(many)]
        call = f"{name}({', '.join([*texts, *(f'&{r}' for r in results)])})"
        body = f"double {', '.join(results)}; {call}; "
        body += " ".join(f"s[{i}] = {r};" for i, r in enumerate(results))
    elif about.gives == "state":
        body = f"s[0] = (double){call};"
    elif about.gives == "int" and kind.type == "float":
        raise Untranslatable(f"policy {policy.name}: {role} gives a float; expected a whole number")
    else:
        body = f"return {call};"
    return f"{head}{body} }}\n"
