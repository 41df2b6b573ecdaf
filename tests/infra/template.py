"""A synthesized CloudFormation template as plain data, and what tests ask of it."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any


class Template:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.document: dict[str, Any] = json.loads(path.read_text())

    def all(self, resource_type: str) -> dict[str, dict[str, Any]]:
        """Properties of all resources of a type, by logical id."""
        return {
            name: resource.get("Properties", {})
            for name, resource in self.document["Resources"].items()
            if resource["Type"] == resource_type
        }

    def one(self, resource_type: str, starting: str = "") -> dict[str, Any]:
        """The properties of the only resource of a type, or the only one whose id starts so."""
        return self.document["Resources"][self.id_of(resource_type, starting)].get("Properties", {})

    def id_of(self, resource_type: str, starting: str = "") -> str:
        found = [name for name in self.all(resource_type) if name.startswith(starting)]
        assert len(found) == 1, f"{len(found)} of {resource_type} start with {starting!r}: {found}"
        return found[0]

    def resource(self, logical_id: str) -> dict[str, Any]:
        return self.document["Resources"][logical_id]

    @property
    def outputs(self) -> set[str]:
        return set(self.document.get("Outputs", {}))

    def statements_of(self, function: str) -> list[dict[str, Any]]:
        """Everything that the role of a function may do, inline policies and attached ones."""
        role_id = self.all("AWS::Lambda::Function")[self.id_of("AWS::Lambda::Function", function)][
            "Role"
        ]["Fn::GetAtt"][0]
        role = self.resource(role_id)["Properties"]
        assert "ManagedPolicyArns" not in role
        documents = [policy["PolicyDocument"] for policy in role.get("Policies", [])]
        documents += [
            policy["PolicyDocument"]
            for policy in self.all("AWS::IAM::Policy").values()
            if {"Ref": role_id} in policy["Roles"]
        ]
        return [statement for document in documents for statement in document["Statement"]]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for statement in statements for action in as_list(statement["Action"])}


def strings(value: Any) -> Iterator[str]:
    """All texts inside a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
