/**
 * The progress of the run on stderr: on a terminal a bar that is redrawn, elsewhere a few plain lines. Each event remains
 * on the screen as a separate line.
 */
import type { WriteStream } from 'node:tty'
import { styleText } from 'node:util'

export interface Counts {
  readonly published: number
  readonly confirmed: number
  readonly acked: number
}

const BAR_WIDTH = 24
const REDRAW_MS = 80
const PLAIN_LINES = 4

export class Progress {
  readonly #stream: WriteStream
  readonly #total: number
  readonly #colour: boolean
  readonly #beganMs = performance.now()
  #counts: Counts = { published: 0, confirmed: 0, acked: 0 }
  #now = 'starting'
  #drawnMs = 0
  #plainLines = 0

  constructor(stream: WriteStream, total: number) {
    this.#stream = stream
    this.#total = total
    this.#colour = hasColour(stream)
  }

  update(counts: Counts): void {
    this.#counts = counts
    if (this.#stream.isTTY) {
      if (performance.now() - this.#drawnMs >= REDRAW_MS) this.#draw()
      return
    }
    const part = Math.floor((counts.acked / this.#total) * PLAIN_LINES)
    if (part <= this.#plainLines) return
    this.#plainLines = part
    this.#stream.write(`${this.#line()}\n`)
  }

  /** Prints an event. `now` describes the current activity in a few words. */
  say(text: string, now: string): void {
    this.#now = now
    this.clear()
    const line = `${secondsSince(this.#beganMs)}  ${text}`
    this.#stream.write(`${this.#colour ? styleText('bold', line) : line}\n`)
    if (this.#stream.isTTY) this.#draw()
  }

  /** Erases the bar. */
  clear(): void {
    if (this.#stream.isTTY) this.#stream.write('\r\x1b[K')
  }

  #line(): string {
    const { published, confirmed, acked } = this.#counts
    const percent = Math.floor((acked / this.#total) * 100)
    return `${percent} %  published ${grouped(published)}  confirmed ${grouped(confirmed)}  acked ${grouped(acked)}  ${this.#now}`
  }

  #draw(): void {
    this.#drawnMs = performance.now()
    const full = Math.round(Math.min(1, this.#counts.acked / this.#total) * BAR_WIDTH)
    // A bar that wraps could not be erased.
    const room = Math.max(0, this.#stream.columns - BAR_WIDTH - 2)
    const rest = ` ${this.#line()}`.slice(0, room)
    const bar = '█'.repeat(full)
    const empty = '░'.repeat(BAR_WIDTH - full)
    this.#stream.write(`\r\x1b[K${this.#colour ? styleText('green', bar) : bar}${empty}${rest}`)
  }
}

export function hasColour(stream: WriteStream): boolean {
  return stream.isTTY && !process.env['NO_COLOR']
}

/** The time since `beganMs`, a value of `performance.now()`. */
export function secondsSince(beganMs: number): string {
  return `${((performance.now() - beganMs) / 1000).toFixed(1)} s`
}

/** Formats 12345 as 12,345. */
export function grouped(count: number): string {
  return count.toLocaleString('en-US')
}
