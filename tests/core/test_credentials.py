"""Secrets as files of one folder, made by `gurney credentials` and read by the settings."""

import stat
from pathlib import Path

import pytest

from gurney.credentials import USERS, client_tokens, generate, password_file, signed_on
from gurney.errors import Invalid
from gurney.facade import FacadeSettings
from gurney.model.access import Role
from gurney.settings import SECRETS_DIR, Settings
from services.inference_server.settings import InferenceServerSettings
from services.mis.settings import MisSettings


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_only_the_owner_can_read_what_is_made(tmp_path: Path) -> None:
    """Folder and files are closed to others, and every user has a password of his own."""
    folder = tmp_path / "secrets"
    users = generate(folder, ["n1"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    passwords = [(folder / password_file(user)).read_text().strip() for user in users]
    assert len(set(passwords)) == len(users)
    assert all(password in (folder / USERS).read_text() for password in passwords)


def test_what_is_there_stays_and_agents_are_added(tmp_path: Path) -> None:
    """A later call adds users and keeps every secret; a secret whose file was removed is made anew."""
    generate(tmp_path, ["n1"])
    before = contents(tmp_path)
    assert "agent-n1" in generate(tmp_path, ["n2"], with_operator=True)
    after = contents(tmp_path)
    assert {name: text for name, text in after.items() if name in before and name != USERS} == {
        name: text for name, text in before.items() if name != USERS
    }
    assert set(after) - set(before) == {"nats_agent-n2", "nats_operator"}
    (tmp_path / "nats_job").unlink()
    assert "operator" in generate(tmp_path)
    assert contents(tmp_path)["nats_job"] != before["nats_job"]


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    """A file without a secret is told by its name, not taken for a password that everybody has."""
    generate(tmp_path)
    (tmp_path / "nats_job").write_text("\n")
    with pytest.raises(Invalid, match="nats_job is empty"):
        generate(tmp_path)


def test_settings_read_secrets_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting may lie in a file of the folder of secrets; the environment goes before it."""
    generate(tmp_path)
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    settings = Settings()
    assert settings.run_secret.get_secret_value() == (tmp_path / "gurney_run_secret").read_text().strip()
    assert settings.admin_token is not None
    assert settings.admin_token.get_secret_value().startswith("gurney_")
    monkeypatch.setenv("GURNEY_RUN_SECRET", "mine")
    assert Settings().run_secret.get_secret_value() == "mine"


def test_a_folder_of_secrets_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped folder is a clear error, not a server without secrets."""
    monkeypatch.setenv(SECRETS_DIR, "/there/is/none")
    with pytest.raises(Invalid, match="GURNEY_SECRETS_DIR: there is no folder /there/is/none"):
        Settings()


def test_each_service_signs_on_as_itself(tmp_path: Path) -> None:
    """A service takes its own user from the folder, an agent that of its node; a user that is set stands."""
    generate(tmp_path, ["n1"])
    settings = Settings(secrets_dir=tmp_path, node="n1")
    for service, user in (("job", "job"), ("agent", "agent-n1")):
        signed = signed_on(settings, service)
        assert signed.nats_user == user
        assert signed.nats_password is not None
        assert signed.nats_password.get_secret_value() == (tmp_path / f"nats_{user}").read_text().strip()
    own = Settings(secrets_dir=tmp_path, nats_user="me")
    assert signed_on(own, "job") is own
    stranger = Settings(secrets_dir=tmp_path, node="n2")
    assert signed_on(stranger, "agent").nats_user is None


@pytest.mark.parametrize(("name", "facade"), [("inference-server", InferenceServerSettings), ("mis", MisSettings)])
def test_a_facade_and_the_edge_read_the_same_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, facade: type[FacadeSettings]
) -> None:
    """The token that was made for a façade is what it sends, and what the edge knows as its own."""
    generate(tmp_path)
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path))
    monkeypatch.setenv("GURNEY_MIS_MAP_URN", "urn:oci:x")
    secret = facade.load().token.get_secret_value()
    assert secret.startswith("gurney_")
    known = client_tokens(Settings(client_tokens={name: Role.DEVELOPER}))
    assert known == {name: (secret, Role.DEVELOPER)}


def test_a_client_without_its_token_is_told(tmp_path: Path) -> None:
    """A token that was promised and lies nowhere is a clear error, not a client that nobody knows."""
    for folder in (tmp_path, None):
        with pytest.raises(Invalid, match="client_tokens: GURNEY_SECRETS_DIR has no file gurney_a_b_token"):
            client_tokens(Settings(client_tokens={"a-b": Role.DEVELOPER}, secrets_dir=folder))
