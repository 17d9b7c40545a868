/** Prints each event as a line with its time and its process, in colour only on a terminal. */
import type { WriteStream } from 'node:tty'
import { styleText } from 'node:util'
import { hasColour, secondsSince } from '../demo/progress.js'

const TIME_WIDTH = 6
const ACTOR_WIDTH = 9

export class Lines {
  readonly #stream: WriteStream
  readonly #colour: boolean
  readonly #beganMs = performance.now()

  constructor(stream: WriteStream) {
    this.#stream = stream
    this.#colour = hasColour(stream)
  }

  say(actor: string, text: string): void {
    const time = secondsSince(this.#beganMs).padStart(TIME_WIDTH)
    const who = actor.padEnd(ACTOR_WIDTH)
    this.#write(
      this.#colour
        ? `${styleText('dim', time)}  ${styleText('cyan', who)}  ${text}`
        : `${time}  ${who}  ${text}`,
    )
  }

  heading(text: string): void {
    this.#write(`\n${this.#colour ? styleText('bold', text) : text}`)
  }

  check(text: string, isGood: boolean): void {
    const mark = isGood ? 'ok ' : 'NO '
    this.#write(`${this.#colour ? styleText(isGood ? 'green' : 'red', mark) : mark} ${text}`)
  }

  plain(text: string): void {
    this.#write(text)
  }

  #write(line: string): void {
    this.#stream.write(`${line}\n`)
  }
}
