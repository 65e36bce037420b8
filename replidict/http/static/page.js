// The status page: what `/live` says of this node and its cluster, each time it says something.

import {draw} from "./chart.js";
import {byId, element, fillTable, keep, setText, show} from "./dom.js";
import {browser} from "./keys.js";
import {Node, Unauthorized} from "./stream.js";
import {bytes, count, duration, latency, plural, rate} from "./words.js";

const LATE = 3; // seconds without contact after which a member is marked

const node = new Node();
let following = new AbortController();
let lastHeard = null;

function render(live) {
  const {status} = live;
  lastHeard = new Date();
  state("live", "live");
  show(byId("live"), true);
  setText(byId("node"), [status.address ?? "a single node without a network", `replidict ${live.release}`].join(" · "));
  notice(noticeOf(status));
  figures(live);
  members(live);
  charts(live.recent);
  locks(live);
  processes(status);
  elections(live.recent.elections);
}

function state(kind, text) {
  byId("state").dataset.state = kind;
  setText(byId("state"), text);
}

function notice([text, kind]) {
  byId("notice").className = `notice ${kind}`;
  setText(byId("notice"), text);
  show(byId("notice"), text !== "");
}

// What somebody must know before all else, as [text, class].
function noticeOf(status) {
  const all = status.peers.length + 1;
  const reached = status.connected.length + 1;
  if (status.role === "stopped") return ["This node has stopped. Its log says why.", "bad"];
  if (status.role === "removed") return ["This node is no member of its cluster any more, and has stopped.", "bad"];
  if (all > 1 && reached === 1) {
    const others = `it reaches none of the other ${plural(all - 1, "member")}`;
    return [`This node is cut off: ${others}. Its copy may be out of date, and writes here fail after their timeout.`, "bad"];
  }
  if (status.leader === null && reached * 2 <= all) {
    const others = `this node reaches ${reached - 1} of the other ${plural(all - 1, "member")}`;
    return [`No majority: ${others}. Writes wait until more of them are back; plain reads go on.`, "bad"];
  }
  if (status.leader === null) {
    return ["There is no leader at the moment: the members are electing one. Writes wait for it; plain reads go on.", ""];
  }
  return ["", ""];
}

function figures({status, disk_bytes}) {
  const shown = [
    ["Keys", count(status.keys)],
    ["Revision", count(status.revision)],
    ["Term", count(status.term)],
    ["Log entries", count(status.log_entries)],
    ["Log size", bytes(status.log_bytes)],
    ["Disk", bytes(disk_bytes)],
    ["Leases", count(status.leases)],
    ["Locks held", count(status.locks)],
    ["Watchers", count(status.watchers)],
  ];
  const make = () => element("div", {}, element("dt"), element("dd"));
  keep(byId("figures"), shown, make, (box, [name, text]) => {
    setText(box.firstElementChild, name);
    setText(box.lastElementChild, text);
  });
}

// Who leads is what this node knows; how far the others are, what their leader knew when it was last asked.
function members({status, members: known}) {
  const unknown = {voter: true, match_index: null, last_contact: null, release: null};
  const here = status.address ?? "local";
  const addresses = known.length ? known : [here, ...status.peers].sort().map((address) => ({...unknown, address}));
  const led = status.leader !== null;
  const furthest = Math.max(...addresses.map((member) => member.match_index ?? 0));
  const rows = addresses.map((member) => {
    const {address} = member;
    const leads = address === status.leader;
    const reached = address === here || status.connected.includes(address);
    const parts = [[address, ""]];
    if (address === here) parts.push(["this node", "tag here"]);
    const role = leads ? ["leader", "tag leads"] : [member.voter ? "follower" : "learner", "tag"];
    const behind = leads ? 0 : member.match_index === null || !led ? null : Math.max(furthest - member.match_index, 0);
    return [
      {parts},
      role,
      member.release ?? "–",
      behind === null ? "–" : count(behind),
      contact(member, led, leads, reached),
    ];
  });
  fillTable(byId("members"), rows);
}

function contact({last_contact}, led, leads, reached) {
  if (!reached) return [last_contact === null || !led ? "not reached" : `${duration(last_contact)} ago`, "late"];
  if (leads) return "now";
  if (last_contact === null || !led) return "–";
  if (last_contact < 1) return "now";
  return [`${duration(last_contact)} ago`, last_contact > LATE ? "late" : ""];
}

function charts({interval, intervals, counted}) {
  const writes = new Array(intervals).fill(0);
  const p50 = new Array(intervals).fill(null);
  const p99 = new Array(intervals).fill(null);
  for (const each of counted) {
    const at = intervals - 1 - each.ago;
    writes[at] = each.writes / interval;
    [p50[at], p99[at]] = [each.p50, each.p99];
  }
  const whole = (values) => values.slice(0, -1); // the last interval goes on
  const seconds = interval * intervals;
  const last = (values) => whole(values).findLast((value) => value !== null) ?? null;
  setText(byId("writes-now"), rate(writes.at(-2)));
  setText(byId("p50-now"), latency(last(p50)));
  setText(byId("p99-now"), latency(last(p99)));
  draw(byId("writes-chart"), {
    lines: [{name: "writes a second", values: whole(writes), className: "writes"}],
    title: "Writes of the cluster", seconds, label: rate, area: true,
  });
  draw(byId("took-chart"), {
    lines: [{name: "p50", values: whole(p50), className: "p50"}, {name: "p99", values: whole(p99), className: "p99"}],
    title: "Time of a write through this node", seconds, label: latency,
  });
}

function locks({locks: held, status, now}) {
  const rows = held.map((lock) => {
    const age = duration(Math.max(now - lock.since, 0));
    return [lock.name, lock.holder, lock.info || "–", age, lock.waiters ? count(lock.waiters) : "–"];
  });
  fillTable(byId("locks"), rows);
  show(byId("locks"), rows.length > 0);
  show(byId("locks-none"), rows.length === 0);
  setText(byId("locks-count"), status.locks > rows.length ? `the first ${rows.length} of ${count(status.locks)}` : "");
}

function processes({attached}) {
  keep(byId("attached"), attached, () => element("li"), (item, pid) => setText(item, `process ${pid}`));
  show(byId("processes"), attached.length > 0);
}

function elections(seen) {
  const make = () => element("li", {}, element("span"), element("span"), element("span"));
  keep(byId("elections"), seen, make, (item, {term, address, ago}) => {
    setText(item.children[0], `term ${count(term)}`);
    setText(item.children[1], address);
    setText(item.children[2], `${duration(ago)} ago`);
  });
}

function lost() {
  state("lost", "not connected");
  const since = lastHeard === null ? "" : ` What is shown is from ${lastHeard.toLocaleTimeString()}.`;
  notice([`This page does not reach its node, and tries again every second.${since}`, "bad"]);
}

function askForToken() {
  state("opening", "locked");
  show(byId("live"), false);
  show(byId("token"), true);
  show(byId("token-problem"), node.hasToken);
  node.token = null;
  byId("token-text").focus();
}

async function follow() {
  following.abort();
  following = new AbortController();
  try {
    await node.follow("live", render, lost, following.signal);
  } catch (error) {
    if (!(error instanceof Unauthorized)) throw error;
    askForToken();
  }
}

byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  node.token = byId("token-text").value.trim();
  byId("token-text").value = "";
  show(byId("token"), false);
  state("opening", "connecting");
  follow();
});

// A page that nobody sees asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) following.abort();
  else if (byId("token").hidden) follow();
});

browser(node, askForToken);
if (document.documentElement.dataset.token === "yes" && !node.hasToken) askForToken();
else follow();
