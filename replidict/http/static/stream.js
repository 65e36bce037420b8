// Requests to this node, with the token, and the stream of what it says of itself. `EventSource` could not send the
// token, so the events are read from the body of an ordinary answer.

const SILENCE = 6000; // milliseconds after which a stream that says nothing is given up
const AGAIN = 1000; // milliseconds until it is tried again
const KEPT = `replidict token of ${location.host}${location.pathname}`;

export class Unauthorized extends Error {}

export class Node {
  #token = sessionStorage.getItem(KEPT);

  get hasToken() {
    return this.#token !== null;
  }

  set token(text) {
    this.#token = text;
    if (text === null) sessionStorage.removeItem(KEPT);
    else sessionStorage.setItem(KEPT, text);
  }

  async get(path, signal) {
    const headers = this.#token === null ? {} : {Authorization: `Bearer ${this.#token}`};
    const response = await fetch(path, {headers, signal, cache: "no-store", redirect: "error"});
    if (response.status === 401) throw new Unauthorized();
    return response;
  }

  // Tell `hear` each event, and `lose` when there are none, until `signal` ends it. Throws `Unauthorized`.
  async follow(path, hear, lose, signal) {
    while (!signal.aborted) {
      const given = new AbortController();
      const end = () => given.abort();
      signal.addEventListener("abort", end);
      let silence = setTimeout(end, SILENCE);
      try {
        const response = await this.get(path, given.signal);
        if (response.ok) {
          for await (const data of events(response.body)) {
            clearTimeout(silence);
            silence = setTimeout(end, SILENCE);
            hear(JSON.parse(data));
          }
        }
      } catch (error) {
        if (error instanceof Unauthorized) throw error;
      } finally {
        clearTimeout(silence);
        signal.removeEventListener("abort", end);
        given.abort();
      }
      if (signal.aborted) return;
      lose();
      await new Promise((resolve) => setTimeout(resolve, AGAIN));
    }
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
    }
  }
}
