from __future__ import annotations

import pytest

from nodeagent.runtime.images import ImageRefused, check_reference, explain_pull


@pytest.mark.parametrize(
    "reference",
    ["ubuntu", "ubuntu:22.04", "oven/bun:latest", "registry.example.com:5000/a/b:c", "e2bdev/base",
     "a@sha256:" + "0" * 64],
)  # fmt: skip
def test_references_are_taken_as_they_are(reference):
    assert check_reference(f" {reference} ") == reference


def test_the_default_registry_is_left_out():
    assert check_reference("docker.io/library/ubuntu:22.04") == "ubuntu:22.04"
    assert check_reference("docker.io/oven/bun") == "oven/bun"


@pytest.mark.parametrize("reference", ["", "UPPER", "a b", "a:b:c", "--privileged", "a;b", "../x"])
def test_malformed_references_are_refused(reference):
    with pytest.raises(ImageRefused, match="invalid image reference"):
        check_reference(reference)


@pytest.mark.parametrize(
    "reference",
    ["sandlot/base:latest", "sandlot/layer:abc", "docker.io/sandlot/template:x", "sandlot/private"],
)
def test_our_own_images_cannot_be_named(reference):
    with pytest.raises(ImageRefused, match="not found"):
        check_reference(reference)


@pytest.mark.parametrize(
    ("text", "has_credentials", "expected"),
    [
        ("manifest for x:1 not found: manifest unknown", False,
         "image 'x:1' not found: the image or tag does not exist in the registry"),
        ("pull access denied for x, repository does not exist or may require 'docker login'", False,
         "repository 'x:1' not found: verify the image name is correct"),
        ("pull access denied for x", True, "access denied to 'x:1': authentication required"),
        ("unauthorized: authentication required", False, "access denied to 'x:1'"),
        ("name unknown: repository not known", False, "repository 'x:1' not found"),
        ("unexpected status code 503 from registry", False,
         "failed to pull image 'x:1': registry returned status code 503"),
        ("dial tcp 10.1.2.3:443: connect: connection refused", False,
         "unable to retrieve image from registry"),
    ],
)  # fmt: skip
def test_complaints_are_put_in_users_words(text, has_credentials, expected):
    told = explain_pull("x:1", text, has_credentials)
    assert expected in told
    assert "10.1.2.3" not in told
