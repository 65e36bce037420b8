// The key browser: keys by prefix, a page at a time; a value is read when its key is opened.

import {byId, element, setText, show} from "./dom.js";
import {Unauthorized} from "./stream.js";
import {bytes, count, duration} from "./words.js";

const PAGE = 30;
const SHOWN = 100_000; // characters of a value, and
const SHOWN_BYTES = 512; // of one that is no text

export function browser(node, unauthorized) {
  let prefix = "";
  let after = null;
  let asked = 0;

  const attempt = async (work) => {
    try {
      await work();
    } catch (error) {
      if (error instanceof Unauthorized) unauthorized();
      else setText(byId("keys-note"), "The node did not answer. Try again.");
    }
  };

  async function list(anew) {
    const number = ++asked;
    if (anew) {
      prefix = byId("prefix").value;
      after = null;
    }
    const query = new URLSearchParams({prefix, limit: PAGE});
    if (after !== null) query.set("after", after);
    const response = await node.get(`kv?${query}`);
    const body = await response.json();
    if (number !== asked) return;
    if (!response.ok) {
      setText(byId("keys-note"), said(body));
      return;
    }
    if (anew) byId("keys").replaceChildren();
    const first = byId("keys").children.length;
    byId("keys").append(...body.keys.map(row));
    after = body.next;
    show(byId("more"), after !== null);
    const shown = byId("keys").children.length;
    setText(byId("keys-note"), shown ? `${count(shown)} shown${after === null ? "" : ", and there are more"}.` : "There is no such key.");
    if (!anew) byId("keys").children[first]?.querySelector("button").focus();
  }

  function row(key) {
    const button = element("button", {type: "button"}, key === "" ? "(the empty key)" : key);
    button.setAttribute("aria-expanded", "false");
    const made = element("li", {}, button);
    button.addEventListener("click", () => attempt(async () => {
      if (made.children.length > 1) {
        made.lastElementChild.remove();
        button.setAttribute("aria-expanded", "false");
        return;
      }
      const value = element("div", {className: "value"}, element("p", {}, "reading"));
      made.append(value);
      button.setAttribute("aria-expanded", "true");
      value.replaceChildren(...(await valueOf(key)));
    }));
    return made;
  }

  async function valueOf(key) {
    if (key === "." || key === "..") {
      return [element("p", {}, "Browsers can't ask for this key: they take it for a way up. Read it with: replidict get")];
    }
    const response = await node.get(`kv/${encodeURIComponent(key)}`);
    if (response.status === 404) return [element("p", {}, "It is gone meanwhile.")];
    if (!response.ok) return [element("p", {}, said(await response.json()))];
    const data = new Uint8Array(await response.arrayBuffer());
    const type = response.headers.get("Content-Type").split(";")[0];
    const [kind, text, whole] = textOf(type, data);
    const facts = [kind, bytes(data.length), `revision ${response.headers.get("ETag").replaceAll('"', "")}`];
    const left = response.headers.get("Expires-In");
    if (left !== null) facts.push(`expires in ${duration(Number(left))}`);
    if (!whole) facts.push("only the beginning is shown");
    const shown = element("pre", {tabIndex: 0}, text);
    shown.setAttribute("aria-label", `value of ${key}`);
    return [element("p", {}, facts.join(" · ")), shown];
  }

  byId("browse").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => list(true));
  });
  byId("more").addEventListener("click", () => attempt(() => list(false)));
}

function said(problem) {
  return `${problem.title}: ${problem.detail}`;
}

function textOf(type, data) {
  if (type === "application/octet-stream") {
    const digits = [...data.subarray(0, SHOWN_BYTES)].map((byte) => byte.toString(16).padStart(2, "0"));
    const lines = [];
    for (let at = 0; at < digits.length; at += 16) lines.push(digits.slice(at, at + 16).join(" "));
    return ["bytes", lines.join("\n"), data.length <= SHOWN_BYTES];
  }
  const text = new TextDecoder().decode(data);
  return [type === "application/json" ? "Python value, as JSON" : "text", text.slice(0, SHOWN), text.length <= SHOWN];
}
