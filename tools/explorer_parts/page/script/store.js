// SPDX-License-Identifier: Apache-2.0
// The data: an index of all items, which comes with the page, and chunks of whole items, which come when asked for.
// Chunks are scripts that call `receiveChunk`, since a page opened from a file may not fetch.
"use strict";

explorer.store = (() => {
  const KEPT_CHUNKS = 24;
  const waiting = new Map(); // chunk → {promise, resolve}
  const chunks = new Map(); // chunk → items; the least recently used first
  let index = null;

  function receiveIndex(content) {
    index = content;
    explorer.main.start(content);
  }

  function receiveChunk(chunk, items) {
    remember(chunk, items);
    waiting.get(chunk)?.resolve(items);
    waiting.delete(chunk);
  }

  function remember(chunk, items) {
    chunks.delete(chunk);
    chunks.set(chunk, items);
    if (chunks.size > KEPT_CHUNKS) chunks.delete(chunks.keys().next().value);
  }

  /** The items of a chunk, loaded if they are not here. */
  function load(chunk) {
    const here = chunks.get(chunk);
    if (here) {
      remember(chunk, here);
      return Promise.resolve(here);
    }
    const known = waiting.get(chunk);
    if (known) return known.promise;
    let resolve, reject;
    const promise = new Promise((yes, no) => ([resolve, reject] = [yes, no]));
    waiting.set(chunk, { promise, resolve });
    const script = document.createElement("script");
    script.src = `data/items-${String(chunk).padStart(5, "0")}.js`;
    script.onload = () => script.remove();
    script.onerror = () => {
      script.remove();
      waiting.delete(chunk);
      reject(new Error(`${script.getAttribute("src")} is missing: copy the page with its whole folder`));
    };
    document.head.append(script);
    return promise;
  }

  /** The chunk that item number `item` is in. */
  function chunkOf(item) {
    const starts = index.chunk_starts;
    let low = 0, high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= item) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Everything about item number `item`. */
  async function item(item) {
    const chunk = chunkOf(item);
    return (await load(chunk))[item - index.chunk_starts[chunk]];
  }

  return { receiveIndex, receiveChunk, load, item, chunkOf };
})();
