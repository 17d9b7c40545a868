/**
 * The number of state pages of all queues and producers, which a directory must list, and the size of their newest
 * copies in the log. The owner of a page reports when the page is created, written, and gone.
 *
 * Invariant: `bytes` is the total size of the newest copies (checked by `Broker.audit`); `count` is at least the number
 * of pages with a copy in the log.
 */
export class PageUse {
  /** Pages that exist, or will exist after the next checkpoint. */
  count = 0
  bytes = 0

  /** A page was written with `bytes`. Its previous copy took `before`; 0: there was none. */
  written(before: number, bytes: number): void {
    this.bytes += bytes - before
  }

  /** The owner of the page is gone. `bytes` is the size of its newest copy. */
  gone(bytes: number): void {
    this.count--
    this.bytes -= bytes
  }
}
