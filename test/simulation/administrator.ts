/** A simulated administrator: makes, changes, empties, deletes and looks at queues. */
import { OP, decodeControl, encodeControl, type HelloOk } from '@sluice/protocol'
import { Client } from './client.js'
import { Violation } from './trace.js'

export class Administrator extends Client {
  readonly #waiting = new Map<number, string>()
  /** Queues that it knows to be there. */
  readonly #made = new Set<string>()

  get isDone(): boolean {
    return this.#waiting.size === 0 && this.around.queueNames.every((name) => this.#made.has(name))
  }

  protected opened(_ok: HelloOk): void {}

  protected lost(): void {
    this.#waiting.clear()
  }

  protected work(): void {
    const { chance, queueNames, isHealing } = this.around
    if (isHealing) {
      for (const name of queueNames) {
        if (this.#made.has(name) || this.#waiting.size > 0) continue
        this.#ask(OP.ENSURE, { name }, name)
      }
      return
    }
    const missing = queueNames.find((one) => !this.#made.has(one))
    const name = missing !== undefined && chance.hit(0.6) ? missing : chance.pick(queueNames)
    const kind = name === missing ? 0 : chance.random()
    if (kind < 0.45) {
      const initial = chance.int(0, 300)
      const options = chance.hit(0.5)
        ? {}
        : {
            maxDeliveries: chance.int(1, 5),
            retryInitialMs: initial,
            retryMaxMs: initial + chance.int(0, 2000),
          }
      this.#ask(OP.ENSURE, { name, options, update: chance.hit(0.7) }, name)
    } else if (kind < 0.46) {
      this.#made.delete(name)
      this.#ask(OP.DELETE, { name }, '')
    } else if (kind < 0.48) {
      this.#ask(OP.PURGE, { name }, '')
    } else if (kind < 0.9) {
      this.#ask(OP.GET, { name }, '')
    } else {
      this.#ask(OP.LIST, {}, '')
    }
  }

  #ask(opcode: number, body: { readonly [name: string]: unknown }, made: string): void {
    const correlation = this.nextCorrelation()
    this.#waiting.set(correlation, made)
    this.send(opcode, 0, correlation, encodeControl(body))
  }

  protected frame(
    opcode: number,
    _channel: number,
    correlation: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    if (opcode !== OP.RESULT && opcode !== OP.ERROR)
      throw new Violation(21, `${this.name} is sent frame ${opcode}`)
    const made = this.#waiting.get(correlation)
    if (made === undefined)
      throw new Violation(21, `${this.name} is answered request ${correlation}, which is not open`)
    this.#waiting.delete(correlation)
    if (opcode === OP.RESULT) {
      decodeControl(bytes, start, end)
      if (made !== '') this.#made.add(made)
    }
  }
}
