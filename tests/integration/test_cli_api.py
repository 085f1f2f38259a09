"""The command line against the real API and the real parts; no worker runs, so jobs wait."""

import io
import json
import zipfile

import pytest
from httpx2 import WSGITransport
from PIL import Image
from sqlalchemy import update
from typer.testing import CliRunner

from app.cli.connect import Service
from app.cli.exits import Exit
from app.cli.main import app
from app.client import Darkroom
from app.datasets.tables import DatasetVersion
from app.models.register import announce_version, complete_version
from app.models.spec import ModelSpec, PreprocessSpec
from app.tenants.keys import create_key
from app.tenants.scopes import Scope
from tests.factories import add_upload, entry

URL = "http://darkroom.test"
#: Number, label and split of images with the same bytes.
COPIES = [(0, "cat", "train"), (1, "dog", "test")]


@pytest.fixture(scope="module")
def wsgi(app):
    return WSGITransport(app, raise_app_exceptions=False)


@pytest.fixture
def key(database, settings, tenant_id):
    pepper = settings.key_pepper.get_secret_value()
    with database.tenant(tenant_id) as session:
        return create_key(session, tenant_id, name="cli", scopes=[Scope.ADMIN], pepper=pepper).text


@pytest.fixture
def run(wsgi, key, monkeypatch):
    monkeypatch.setenv("DARKROOM_API_KEY", key)

    def invoke(*words, code=Exit.DONE):
        done = CliRunner().invoke(
            app, [str(word) for word in words], obj=Service(url=URL, http=wsgi)
        )
        assert done.exit_code == code, done.output
        return done

    return invoke


@pytest.fixture
def darkroom(wsgi, key):
    with Darkroom(URL, key, http=wsgi) as darkroom:
        yield darkroom


@pytest.fixture
def digits(database, tenant_id):
    """A ready version of the model digits."""
    spec = ModelSpec("small_cnn", ("0", "1"), PreprocessSpec(32, 32))
    with database.tenant(tenant_id) as session:
        version = announce_version(
            session, tenant_id, model="digits", arch="small_cnn", arch_options={}, lineage={}
        )
        complete_version(
            session,
            tenant_id,
            version.id,
            spec=spec,
            weights_key="weights/x",
            weights_sha256="ab" * 32,
            weights_bytes=1000,
            parameter_count=250,
            scores={"accuracy": 0.98},
        )
    return version


def archive(path):
    image = io.BytesIO()
    Image.new("L", (8, 8), 7).save(image, "PNG")
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("0/a.png", image.getvalue())
        out.writestr("1/b.png", image.getvalue())
    return path


def test_archive_is_uploaded_and_waits_for_its_unpacking(run, tmp_path):
    added = json.loads(run("uploads", "add", archive(tmp_path / "two.zip"), "--json").stdout)
    assert added["job"]["kind"] == "ingest"
    shown = json.loads(run("uploads", "show", added["upload"]["id"], "--json").stdout)
    assert (shown["state"], shown["filename"]) == ("stored", "two.zip")
    assert shown["id"] in run("uploads", "list").stdout
    assert added["job"]["id"] in run("jobs", "--kind", "ingest").stdout
    assert "queued" in run("job", added["job"]["id"]).stdout


def test_folder_is_uploaded_as_a_tar(run, darkroom, tmp_path):
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "cat" / "a.png")
    added = json.loads(run("uploads", "add", folder, "--json").stdout)
    assert added["upload"]["filename"] == "photos.tar"
    assert added["upload"]["size_bytes"] % 512 == 0


def test_large_file_goes_by_parts_to_the_real_store(darkroom, tmp_path):
    path = tmp_path / "large.zip"
    path.write_bytes(archive(tmp_path / "two.zip").read_bytes() + bytes(9_000_000))
    seen = []
    added = darkroom.uploads.add(
        path, multipart_above_bytes=1_000_000, on_progress=lambda *each: seen.append(each)
    )
    assert added.upload.size_bytes == path.stat().st_size
    assert added.upload.state == "stored"
    assert added.job is not None
    assert max(seen) == (path.stat().st_size,) * 2


def test_predict_job_is_submitted_shown_and_cancelled(run, digits):
    job_id = run(
        "submit", "s3://photos/cats", "-m", "digits@1", "--include", "*.png", "--metadata", "n=1"
    ).stdout.strip()
    shown = run("job", job_id).stdout
    assert "digits@1" in shown
    assert "prefix=s3://photos/cats" in shown
    assert "n=1" in shown
    assert json.loads(run("jobs", "--json").stdout)[0]["id"] == job_id
    assert run("results", job_id).stdout == ""
    assert json.loads(run("cancel", job_id, "--json").stdout)["state"] in (
        "cancelling",
        "cancelled",
    )


def test_watch_ends_when_its_timeout_passes_and_the_job_goes_on(run, darkroom, digits):
    job = darkroom.jobs.submit_predict({"prefix": "s3://photos/cats"}, "digits@1")
    done = run("watch", job.id, "--timeout", 1, code=Exit.TIMEOUT)
    assert "it goes on [wait_timeout]" in done.stderr
    assert not darkroom.jobs.get(job.id).is_over


def test_models_are_listed_shown_and_aliased(run, digits):
    assert run("models", "alias", "digits", "@canary", 1).stdout == (
        "digits@canary is now digits@1\n"
    )
    assert "@canary" in run("models", "list").stdout
    assert "accuracy=0.98" in run("models", "show", "digits@canary").stdout
    assert json.loads(run("models", "show", "digits@1", "--json").stdout)["number"] == 1


def test_unknown_model_is_refused_with_the_services_own_words(run):
    done = run("submit", "s3://b/p", "-m", "nothing", code=Exit.REFUSED)
    assert "[model_not_found]" in done.stderr


@pytest.mark.parametrize("model", ["nothing", "digits@nothing", "digits@7"])
def test_unknown_model_is_refused_before_an_archive_is_sent(run, darkroom, digits, tmp_path, model):
    path = archive(tmp_path / "two.zip")
    done = run("submit", path, "-m", model, code=Exit.REFUSED)
    assert "[model_not_found]" in done.stderr
    assert list(darkroom.uploads.list()) == []


def test_wrong_input_is_refused_with_its_pointer(run, digits):
    done = run("submit", "s3://b/p", "-m", "not a name", code=Exit.REFUSED)
    assert "/model" in done.stderr


def test_keys_are_made_listed_and_revoked(run, wsgi, monkeypatch):
    made = json.loads(
        run("keys", "create", "reader", "--scope", "jobs:read", "--days", 1, "--json").stdout
    )
    assert made["id"] in run("keys", "list").stdout
    with Darkroom(URL, made["text"], http=wsgi) as reader:
        assert list(reader.jobs.list()) == []
    run("keys", "revoke", made["id"])
    monkeypatch.setenv("DARKROOM_API_KEY", made["text"])
    assert "error: " in run("jobs", code=Exit.REFUSED).stderr


def test_finetune_and_import_are_submitted(run, darkroom, tmp_path):
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(bytes(16))
    imported = run(
        *("models", "import", "net", "--arch", "resnet18", "--weights", weights),
        *("--classes", "imagenet", "--alias", "", "--no-watch"),
    )
    job = darkroom.jobs.get(imported.stdout.strip())
    assert (job.kind, job.options["alias"], job.options["classes"]) == ("import", None, "imagenet")
    done = run("finetune", "-d", "none@1", "-m", "net", "--epochs", 3, code=Exit.REFUSED)
    assert "[dataset_not_found]" in done.stderr


def test_freezing_an_upload_that_is_not_unpacked_is_refused(run, tmp_path):
    upload_id = run("uploads", "add", archive(tmp_path / "two.zip")).stdout.strip()
    run("datasets", "freeze", "two", "-u", upload_id, code=Exit.REFUSED)
    assert run("datasets", "list").stdout == ""


def test_labels_get_other_names_as_a_dataset_is_frozen(run, database, tenant_id):
    kinds = ("kitten", "cat", "dog")
    with database.tenant(tenant_id) as session:
        entries = [entry(n, kinds[n % 3], "train") for n in range(9)]
        upload_id = add_upload(session, tenant_id, entries).id
    freeze = ("datasets", "freeze", "pets", "-u", upload_id, "--label")
    frozen = json.loads(run(*freeze, "kitten=cat", "--label", "dog=hound", "--json").stdout)
    assert frozen["counts"]["train"] == {"cat": 6, "hound": 3}
    assert frozen["source"]["labels"] == {"kitten": "cat", "dog": "hound"}
    assert "hound" in run("datasets", "show", "pets@1").stdout
    assert "[labels_map_invalid]" in run(*freeze, "kiten=cat", code=Exit.REFUSED).stderr
    assert run(*freeze, "kitten", code=Exit.USAGE).stdout == ""


def test_copies_across_splits_are_warned_of(run, database, tenant_id):
    with database.tenant(tenant_id) as session:
        same = [entry(n, label, split, "same") for n, label, split in COPIES]
        upload_id = add_upload(session, tenant_id, [*same, entry(9, "dog", "train")]).id
    frozen = run("datasets", "freeze", "copies", "-u", upload_id)
    assert "stands in several splits in 1 case," in frozen.stderr
    assert "has different labels in 1 case:" in frozen.stderr
    shown = run("datasets", "show", "copies")
    assert "stands in several splits in 1 case," in shown.stderr
    assert (
        "2 images in 1 group of equal ones; 1 across splits, 1 with different labels"
        in shown.stdout
    )
    assert "8 to 8 px, median 8, mean 8.0" in shown.stdout
    assert "100% square" in shown.stdout
    with database.system() as session:
        mine = DatasetVersion.tenant_id == tenant_id
        session.execute(update(DatasetVersion).where(mine).values(facts=None))
    shown = run("datasets", "show", "copies")
    assert "not computed: an earlier release froze it" in shown.stdout
    assert shown.stderr == ""


def test_openapi_document_is_printed(run):
    assert json.loads(run("openapi").stdout)["openapi"].startswith("3.1")


def test_doctor_asks_the_service_as_a_client_would(run, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    checks = {
        check["name"]: check["verdict"]
        for check in json.loads(run("doctor", "--no-torch", "--json").stdout)
    }
    assert checks["service"] == "ok"
    assert checks["key"] == "ok"
    assert checks["workers"] in ("ok", "warn")
