// SPDX-License-Identifier: Apache-2.0
// Where the reader is, as the address says it: #task/item?sample=3&model=…&verdict=wrong
"use strict";

explorer.route = (() => {
  const KEYS = ["q", "task", "level", "subject", "verdict", "graders", "program", "model", "beside", "sample", "sample2"];

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a stray % that somebody typed
    }
  }

  /** {task, item} (null for the overview) and every key of KEYS that is set. */
  function read(hash = location.hash) {
    const [path, query] = divide(hash.replace(/^#/, ""), "?");
    const [task, item] = divide(path, "/");
    const place = { at: item === null ? null : { task: decoded(task), item: decoded(item) } };
    const given = new URLSearchParams(query || "");
    for (const key of KEYS) place[key] = given.get(key) || "";
    return place;
  }

  function divide(text, sign) {
    const at = text.indexOf(sign);
    return at < 0 ? [text, null] : [text.slice(0, at), text.slice(at + 1)];
  }

  function write(place) {
    const given = new URLSearchParams();
    for (const key of KEYS) if (place[key]) given.set(key, place[key]);
    const path = place.at ? `${encodeURIComponent(place.at.task)}/${encodeURIComponent(place.at.item)}` : "";
    const query = given.toString();
    return `#${path}${query ? `?${query}` : ""}`;
  }

  /** Goes there; `isStep` leaves no entry in the history. The page follows the address by `hashchange`. */
  function go(place, isStep = false) {
    const hash = write(place);
    if (hash === (location.hash || "#")) return;
    if (isStep) location.replace(hash);
    else location.hash = hash;
  }

  return { read, write, go };
})();
