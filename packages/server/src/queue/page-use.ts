/**
 * The state pages of all queues and producers together: how many a directory has to list, and what the newest copies of
 * them take in the log. Whoever owns a page tells it here when the page comes, is written anew, and goes.
 *
 * Invariant: `bytes` is what writing all pages anew would take, as they stood when each was written last (checked by
 * `Broker.audit`); `count` is at least as many as have a place in the log.
 */
export class PageUse {
  /** Pages that there are, or will be with the next checkpoint. */
  count = 0
  bytes = 0

  /** The newest copy takes `bytes`; the one before it, or 0, took `before`. */
  written(before: number, bytes: number): void {
    this.bytes += bytes - before
  }

  /** What it was a page of is gone. */
  gone(bytes: number): void {
    this.count--
    this.bytes -= bytes
  }
}
