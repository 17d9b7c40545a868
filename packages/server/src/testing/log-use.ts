/** Live bytes by position in the log, as a queue reports them. Tests of the queue core use this file. */
import { NO_PAGES, type Copy, type LogUse } from '../queue/index.js'

export class CountedUse implements LogUse {
  readonly pages = NO_PAGES
  /** Live bytes by position in the log. */
  readonly live = new Map<number, number>()

  add(position: number, bytes: number): void {
    this.live.set(position, (this.live.get(position) ?? 0) + bytes)
  }

  share(position: number, bytes: number): void {
    this.add(position, bytes)
  }

  remove(position: number, bytes: number): void {
    this.add(position, -bytes)
  }

  gone(): void {}

  move({ from, fromBytes, to, toBytes }: Copy): void {
    this.remove(from, fromBytes)
    this.add(to, toBytes)
  }

  segmentOf(): number {
    return 0
  }
}
