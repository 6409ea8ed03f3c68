"""`omma serve` as a command: it says where it listens, serves the page, and ends without losing an answer."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from uploads import picture

import omma
from omma import backbones, cli, weights
from omma.core.errors import install_command
from omma.core.protocols import Preprocess
from omma.weights.classifier import Calibration, Classifier, HeldOut

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    preprocess = Preprocess(
        size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    encoder = backbones.build(name="vit-n/8", image_size=32, depth=2)
    classifier = Classifier(
        classes=("cat", "dog", "<b>horse</b>"),
        weight=torch.randn(3, encoder.dim),
        calibration=Calibration(temperature=2.0, images=200),
        held_out=HeldOut(torch.linspace(0.3, 1, 200), torch.arange(200) >= 100),
    )
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, encoder, preprocess, {}, classifier.extras())
    return folder


class Command:
    """`omma serve` in another process."""

    def __init__(self, run, folder) -> None:
        words = [sys.executable, "-m", "omma", "serve", str(run), "--port", "0", "--device", "cpu"]
        self.folder = folder
        self.process = subprocess.Popen(
            [*words, "--precision", "fp32"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "1000"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if " at http://" in line:
                break
        assert " at http://127.0.0.1:" in self.lines[-1], self.lines
        self.port = int(self.lines[-1].split("127.0.0.1:")[1].split(",")[0])
        self.address = f"http://127.0.0.1:{self.port}"

    def post(self, data: bytes, path: str = "/embed") -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, data, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def command(run, tmp_path_factory):
    started = Command(run, tmp_path_factory.mktemp("tmp"))
    yield started
    started.process.kill()
    started.process.wait()


def test_it_answers_and_says_where(command):
    assert command.post(picture())[0] == 200
    assert command.post(picture(), "/predict")[1]["results"][0]["class"] in ("cat", "dog", "<b>horse</b>")
    assert any("abstain: below a probability" in line for line in command.lines)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_in_a_browser(command, tmp_path):
    """Keyboard and mouse, at 80 % zoom, with every other host unresolvable; no error on the console."""
    sync_api = pytest.importorskip("playwright.sync_api")
    (tmp_path / "good.png").write_bytes(picture())
    (tmp_path / "<i>bad.png").write_bytes(b"none")
    with sync_api.sync_playwright() as playwright:
        rules = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", f"--host-resolver-rules={rules}"]
        )
        page = browser.new_page(viewport={"width": 1024, "height": 768})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(command.address)
        page.wait_for_selector("body[data-ready]")
        page.evaluate("document.documentElement.style.zoom = '0.8'")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        page.set_input_files("#file", tmp_path / "good.png")
        page.get_by_text("Done: 1 image").wait_for()
        result = page.locator(".result")
        assert result.locator(".bars li").count() == 3
        shares = [float(text.split()[0]) for text in result.locator(".bars .value").all_text_contents()]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert result.locator("img").first.evaluate("i => i.naturalWidth") == 50
        page.get_by_role("button", name="Draw map").press("Enter")
        page.wait_for_selector(".why img")
        assert page.locator(".why img").evaluate("i => i.decode().then(() => i.naturalWidth)") >= 32
        page.evaluate("""() => {
            const data = new DataTransfer();
            data.items.add(new File(['none'], '<i>bad.png', {type: 'image/png'}));
            document.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));
        }""")
        page.wait_for_selector(".error")
        assert page.locator(".error").text_content() == "<i>bad.png: not an image that omma reads"
        assert page.locator(".result i, .result b").count() == 0  # names and classes are no HTML
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) <= 0
        page.goto(command.address + "/docs")
        assert page.locator("h2").count() == 12
        browser.close()
    expected = [text for text in said if "422" in text]  # the browser reports refusals by itself
    assert said == expected
    assert len(expected) == 1
    assert all(url.startswith((command.address, "blob:", "data:")) for url in asked)


def test_sigterm_answers_what_was_accepted_and_exits_0(command):
    """Last of this file: requests run when the signal comes."""
    stop, answers = threading.Event(), []

    def ask(seed):
        while not stop.is_set():
            try:
                answers.append(command.post(picture(seed))[0])
            except (ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected) as error:
                answers.append(type(error).__name__)
                return

    with ThreadPoolExecutor(4) as pool:
        for seed in range(4):
            pool.submit(ask, seed)
        time.sleep(0.5)
        command.process.send_signal(signal.SIGTERM)
        status = command.process.wait(30)
        stop.set()
    assert status == 0
    assert answers.count(200) > 4
    assert {each for each in answers if each != 200} <= {
        "ConnectionRefusedError",
        "ConnectionResetError",
        "RemoteDisconnected",
    }
    assert "ended after" in command.process.stdout.read()
    assert list(command.folder.iterdir()) == []


def test_what_cannot_be_served_is_one_line(run, capsys, tmp_path):
    def refused(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main(["serve", *map(str, words), "--device", "cpu"])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "does not exist" in refused(tmp_path / "none")
    assert "--port 99999" in refused(run, "--port", 99999)
    assert "queue holds 4" in refused(run, "--queue", 4)
    assert "max-wait" in refused(run, "--max-wait", "-1")
    assert "is no index" in refused(run, "--index", tmp_path, "--port", 0)


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ValueError, match=re.escape(install_command("serve"))):
        omma.serve(run)
