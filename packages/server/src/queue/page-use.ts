/**
 * The number of state pages of all queues and producers, and the total size of their newest copies in the log. A directory
 * must list all of these pages. The owner of a page reports when the page is created, written, and gone.
 *
 * Invariant: `bytes` is the total size of the newest copies (checked by `Broker.audit`); `count` is at least the number
 * of pages with a copy in the log.
 */
export class PageUse {
  /** Number of pages that exist, or will exist after the next checkpoint. */
  count = 0
  bytes = 0

  /** Called when a page was written with `bytes`. Its previous copy had the size `before`; 0 if there was none. */
  written(before: number, bytes: number): void {
    this.bytes += bytes - before
  }

  /** Called when a page is gone. `bytes` is the size of its newest copy in the log; 0 if it has none. */
  gone(bytes: number): void {
    this.count--
    this.bytes -= bytes
  }
}
