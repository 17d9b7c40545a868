/**
 * The promise that `ack` and the other settles of a message return: for the answer of the broker, or for the reason why
 * the message cannot be settled. It costs nothing until it is used: without a call of `then`, no native promise is made and
 * there is no unhandled rejection.
 */
import type { SluiceError } from '@sluice/protocol'
import { SettleRequest, type SettledMessage } from './settle-request.js'

export class SettleAnswer implements Promise<void> {
  readonly [Symbol.toStringTag] = 'Promise'
  readonly #source: SettleRequest | SluiceError
  readonly #message: SettledMessage
  #promise: Promise<void> | undefined

  constructor(source: SettleRequest | SluiceError, message: SettledMessage) {
    this.#source = source
    this.#message = message
  }

  #real(): Promise<void> {
    if (this.#promise === undefined) {
      const source = this.#source
      this.#promise =
        source instanceof SettleRequest ? source.answer(this.#message) : Promise.reject<void>(source)
    }
    return this.#promise
  }

  // oxlint-disable-next-line unicorn/no-thenable -- a settle answer is meant to be a thenable
  then<Result = void, Failure = never>(
    onfulfilled?: ((value: void) => Result | PromiseLike<Result>) | null,
    onrejected?: ((reason: unknown) => Failure | PromiseLike<Failure>) | null,
  ): Promise<Result | Failure> {
    return this.#real().then(onfulfilled, onrejected)
  }

  catch<Failure = never>(
    onrejected?: ((reason: unknown) => Failure | PromiseLike<Failure>) | null,
  ): Promise<void | Failure> {
    return this.#real().catch(onrejected)
  }

  finally(onfinally?: (() => void) | null): Promise<void> {
    return this.#real().finally(onfinally)
  }
}
