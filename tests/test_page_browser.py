"""The status page in a real browser, Chromium without a window: what it shows, and how it follows an election."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from replidict import ReplicatedDict
from replidict.http import asgi
from replidict.http.server import HttpServer, listening
from tests.clusters import free_addresses, wait_until
from tests.serving import status
from tests.test_http_serve import leader_of, three
from tests.test_http_server import OPTIONS, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium and its driver: apt-get install chromium chromium-driver"
)

FOLLOWS_WITHIN = 3.0
"""Seconds between the moment at which a node knows its new leader and that at which its page names it."""


class Browser:
    """A tab of Chromium, and what it did."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go to the page there."""
        self.driver.get(f"{url}/")

    def text(self, selector: str) -> str:
        """What one element says."""
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).text)

    def texts(self, selector: str) -> list[str]:
        """What several say, all of one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)"
        return [str(each) for each in self.driver.execute_script(script, selector)]

    def click(self, selector: str) -> None:
        """Press a button."""
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def type(self, selector: str, text: str) -> None:
        """Write into a field."""
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def shows(self, selector: str, text: str) -> None:
        """In a moment, an element says something like this."""
        wait_until(lambda: any(text in each for each in self.texts(selector)), f"{selector} shows {text!r}", 30)

    def fits(self, width: int, height: int = 780) -> bool:
        """Whether a screen of this width shows all of the page's width."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        return bool(self.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"))

    def complaints(self) -> list[str]:
        """What its console says."""
        return [str(entry["message"]) for entry in self._log("browser")]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def hosts(self) -> set[str]:
        """Whom it has sent requests to."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls}


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def tab(chromium: webdriver.Chrome) -> Iterator[Browser]:
    """A tab that knows nothing, and sees a wide screen; its console must stay empty."""
    browser = Browser(chromium)
    chromium.get("about:blank")
    browser.hosts(), browser.complaints()
    try:
        yield browser
        assert browser.complaints() == []
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.get("about:blank")


def named_leader(rows: list[str]) -> list[str]:
    """The addresses of the rows that say leader."""
    return [row.split()[0] for row in rows if "leader" in row]


def test_the_page_follows_the_death_of_the_leader(tmp_path: Path, chromium: webdriver.Chrome) -> None:
    """Members, the leader and a held lock are named; when the leader is killed, the page names the next one at once,
    without a reload, an error, or a request to anybody else."""
    with three(tmp_path) as (nodes, urls), tab(chromium) as browser:
        leader = leader_of(urls)
        shown = (leader + 1) % 3
        addresses = [str(status(url)["address"]) for url in urls]
        learner = {"address": free_addresses(1)[0], "join": addresses[leader], "voter": False}
        with ReplicatedDict[str, str](tmp_path / "holder", **learner) as holder:  # type: ignore[arg-type]
            held = holder.lock("backup", info="nightly")
            assert held.acquire()
            browser.open(urls[shown])
            browser.driver.execute_script("window.sameDocument = true")
            browser.shows("#locks tbody tr", "backup")
            browser.shows("#locks tbody tr", "nightly")
            wait_until(lambda: len(browser.texts("#members tbody tr")) == 4, "all members are there", 30)
            rows = browser.texts("#members tbody tr")
            assert {row.split()[0] for row in rows} >= {addresses[number] for number in range(3) if number != shown}
            browser.shows("#members tbody tr", "this node")
            assert named_leader(rows) == [addresses[leader]]
            assert browser.text("#state") == "live"

            nodes[leader].end(signal.SIGKILL)
            seen: list[str] = []
            known: list[float] = []

            def follows() -> bool:
                seen[:] = named_leader(browser.texts("#members tbody tr"))
                assert len(seen) <= 1
                assert "not reach" not in browser.text("#notice")
                if not known and status(urls[shown])["leader"] not in (None, addresses[leader]):
                    known.append(time.monotonic())
                return bool(seen) and seen != [addresses[leader]]

            wait_until(follows, "the page names another leader", 30)
            took = time.monotonic() - min(known, default=time.monotonic())
            elected = next(str(status(url)["leader"]) for number, url in enumerate(urls) if number != leader)
            assert seen == [elected]
            assert took < FOLLOWS_WITHIN, f"the page followed after {took:.1f} s"
            browser.shows("#elections li", elected)
            assert browser.driver.execute_script("return window.sameDocument") is True
            assert browser.hosts() == {urls[shown].removeprefix("http://")}
            held.release()

            nodes[3 - leader - shown].end(signal.SIGKILL)
            browser.shows("#notice", "No majority")
            wait_until(lambda: named_leader(browser.texts("#members tbody tr")) == [], "nobody is said to lead", 30)


def test_attached_processes_are_shown(tmp_path: Path, chromium: webdriver.Chrome) -> None:
    """The processes that share this node are there with their numbers, as long as there are any."""
    with (
        ReplicatedDict[str, Any](tmp_path / "d", options=OPTIONS, share=True) as d,
        serving(d) as (port, _),
        tab(chromium) as browser,
    ):
        browser.open(f"http://localhost:{port}")
        browser.shows("#figures", "Keys")
        assert not browser.driver.find_element(By.ID, "processes").is_displayed()
        program = (
            "import sys; from replidict import ReplicatedDict; d = ReplicatedDict('d', share=True); d['a'] = 1; input()"
        )
        with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdin=subprocess.PIPE) as process:
            browser.shows("#attached li", f"process {process.pid}")
            assert browser.fits(360)
            process.communicate(b"\n")
        wait_until(lambda: browser.texts("#attached li") == [], "it is gone", 30)
        assert not browser.driver.find_element(By.ID, "processes").is_displayed()


def test_keys_are_browsed_and_values_read_on_request(tmp_path: Path, chromium: webdriver.Chrome) -> None:
    """Keys come by prefix, page by page; a value is shown as text, whatever it is, once its key is opened."""
    with (
        ReplicatedDict[str, Any](tmp_path / "d", options=OPTIONS) as d,
        serving(d) as (port, _),
        tab(chromium) as browser,
    ):
        d.update({f"user/{number:03}": {"name": f"<b>User {number}</b>"} for number in range(40)})
        d.update({"other": "x", "a b/ü?#%": b"\x00\xff", "..": "dots"})
        d.set("user/000", "<img src=x onerror=alert(1)>", ttl=300)
        browser.open(f"http://localhost:{port}")
        browser.shows("#figures", "43")
        assert browser.texts("#keys button") == []
        browser.type("#prefix", "user/")
        browser.click("#browse button")
        wait_until(lambda: len(browser.texts("#keys button")) == 30, "the first page is there", 30)
        browser.click("#more")
        wait_until(lambda: len(browser.texts("#keys button")) == 40, "so is the second", 30)
        assert browser.texts("#keys pre") == []
        browser.click("#keys li:nth-child(1) button")
        browser.shows("#keys pre", "<img src=x onerror=alert(1)>")
        browser.shows("#keys .value p", "expires in 4 min")
        browser.click("#keys li:nth-child(2) button")
        browser.shows("#keys pre", '"<b>User 1</b>"')
        browser.click("#keys li:nth-child(1) button")
        wait_until(lambda: len(browser.texts("#keys pre")) == 1, "it is closed again", 30)
        for prefix, shown in (("a b", "00 ff"), ("..", "replidict get"), ("none", "")):
            browser.type("#prefix", prefix)
            browser.click("#browse button")
            if shown:
                browser.shows("#keys button", prefix)
                browser.click("#keys button")
                browser.shows("#keys .value", shown)
            else:
                browser.shows("#keys-note", "There is no such key.")
        assert browser.fits(360) and browser.fits(320)


def test_the_token_is_asked_for(tmp_path: Path, chromium: webdriver.Chrome) -> None:
    """With a token the page shows nothing before it has it, says when it is wrong, keeps it over a reload, and never
    puts it into a URL."""
    token = "a-token-that-nobody-guesses"
    with (
        ReplicatedDict[str, Any](tmp_path / "d", options=OPTIONS) as d,
        serving(d, token=token) as (port, _),
        tab(chromium) as browser,
    ):
        d["secret"] = "kept"
        browser.open(f"http://localhost:{port}")
        browser.shows("#token h2", "asks for a token")
        assert browser.text("#figures") == ""
        browser.type("#token-text", "a-wrong-token")
        browser.click("#token button")
        browser.shows("#token-problem", "does not accept")
        complained: list[str] = []

        def complains() -> bool:
            complained.extend(browser.complaints())  # which takes them out of the console
            return bool(complained)

        wait_until(complains, "the browser's own, of the answer 401")
        assert len(complained) == 1
        browser.type("#token-text", token)
        browser.click("#token button")
        browser.shows("#figures", "Keys")
        browser.driver.refresh()
        browser.shows("#figures", "Keys")
        browser.click("#browse button")
        browser.shows("#keys button", "secret")
        assert token not in browser.driver.current_url


def test_the_page_says_when_its_node_is_gone(tmp_path: Path, chromium: webdriver.Chrome) -> None:
    """A page that loses its node says so, and goes on when it is back; one whose node has stopped says that."""
    with ReplicatedDict[str, Any](tmp_path / "d", options=OPTIONS) as d, tab(chromium) as browser:
        with serving(d) as (port, _):
            browser.open(f"http://localhost:{port}")
            browser.shows("#state", "live")
            assert browser.texts("#notice") == [""]
        browser.shows("#notice", "does not reach its node")
        served = HttpServer(asgi(d), listening(f":{port}"), OPTIONS)
        served.start()
        browser.shows("#state", "live")
        assert browser.texts("#notice") == [""]
        d.close()
        browser.shows("#notice", "This node has stopped")
        served.stop()
        served.wait()
        assert all("ERR_" in each for each in browser.complaints()), "the browser's own, of the connection"
