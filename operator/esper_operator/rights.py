"""The rights of this process, as the API server has them, against those that the release gives."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from esper_operator.kube import Kind, Kube
from esper_runtime.contracts import InputError

REVIEW = Kind("authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
_ON_SECRETS = ("get", "list", "watch", "update", "patch", "delete", "deletecollection")
"""What the operator must not do with Secrets: whoever may patch one may read it."""


@dataclass(frozen=True)
class Right:
    """One verb on one kind of object.

    Attributes:
        verb: as RBAC has it.
        group: of the API; empty: the core.
        resource: plural, with a subresource after a slash.
        namespace: empty: all.
        name: of the one object that it is about; empty: any.
    """

    verb: str
    group: str
    resource: str
    namespace: str
    name: str = ""

    def __str__(self) -> str:
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        one = f" {self.name}" if self.name else ""
        where = f"in namespace {self.namespace}" if self.namespace else "in all namespaces"
        return f"{self.verb} {kind}{one} {where}"


@dataclass(frozen=True)
class Rights:
    """What should hold.

    Attributes:
        given: rights that the operator needs.
        refused: rights that it must not have.
    """

    given: tuple[Right, ...]
    refused: tuple[Right, ...]

    @classmethod
    def read(cls, text: str) -> "Rights":
        """From JSON: a list of ``{"namespace": ..., "rules": [...]}``, rules as in a Role.

        Raises:
            InputError: it is something else.
        """
        try:
            given = tuple(dict.fromkeys(_spread(json.loads(text))))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                'ESPER_CHECK_RIGHTS: expected a JSON list of {"namespace": "...", "rules": [...]}, as the '
                f"chart sets it ({error!r})"
            ) from error
        if not given:
            raise InputError("ESPER_CHECK_RIGHTS is not set, or names no right; the chart's test pod sets it")
        places = dict.fromkeys(right.namespace for right in given)
        refused = tuple(Right(verb, "", "secrets", place) for place in places for verb in _ON_SECRETS)
        return cls(given, refused)


def _spread(places: list[dict[str, object]]) -> Iterable[Right]:
    for place in places:
        namespace, rules = str(place["namespace"]), place["rules"]
        assert isinstance(rules, list)
        for rule in rules:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        for name in rule.get("resourceNames") or [""]:
                            yield Right(verb, group, resource, namespace, name)


async def has(kube: Kube, right: Right) -> bool:
    """Whether the API server lets this process do that.

    Raises:
        KubeError: it does not say.
    """
    resource, _, sub = right.resource.partition("/")
    attributes = {
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": sub,
        "namespace": right.namespace,
        "name": right.name,
    }
    body = {"metadata": {}, "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}}}
    answer = await kube.create(REVIEW, body)
    return bool((answer.get("status") or {}).get("allowed"))
