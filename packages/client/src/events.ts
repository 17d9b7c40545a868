/**
 * The events of a client: their listeners, and the warnings that Node prints for events without a listener. Without
 * the warnings, a typo in a queue's name, or a handler that always throws, would look like a program that has nothing
 * to do.
 *
 * Invariant: `emit` throws nothing. A listener that fails becomes a warning too.
 */
import { shown, SluiceError } from '@sluice/protocol'
import { attempt, reasonOf, stackOf } from './endings.js'
import type { Connected, Disconnected, Notice, Reconnecting } from './link.js'
import type { LeaseLoss } from './losses.js'
import type { Missed } from './reader.js'
import { Throttle } from './throttle.js'
import type { ConsumerWaiting, HandlerFailure } from './session.js'
import type { Resubscribed } from './subscriber.js'

/** Events of a client, and what their listeners get. */
export interface SluiceEvents {
  connected: Connected
  disconnected: Disconnected
  reconnecting: Reconnecting
  notice: Notice
  /** A failure that no call reports, such as the end of a worker. */
  error: SluiceError
  /**
   * A handler threw a value other than `Retry` or `DeadLetter`. The attempt counts as failed, so the message is
   * delivered again or becomes a dead letter.
   */
  handlerError: HandlerFailure
  /** A handler lost the lease on its message: what the handler does with the message no longer counts. */
  leaseLost: LeaseLoss
  /** Retention removed messages of a stream before a reader got them. */
  missed: Missed
  /** A worker or an iterator waits until its queue exists, or until the broker accepts its subscription. */
  waiting: ConsumerWaiting
  /** The queue of a subscriber was gone and was made again; messages in between are lost to the subscriber. */
  resubscribed: Resubscribed
}

type Name = keyof SluiceEvents
type Listener = (payload: never) => unknown

const NAMES = Object.keys({
  connected: true,
  disconnected: true,
  reconnecting: true,
  notice: true,
  error: true,
  handlerError: true,
  leaseLost: true,
  missed: true,
  waiting: true,
  resubscribed: true,
} satisfies Record<Name, true>) as readonly string[]

/**
 * Interval between warnings about lost leases, and between warnings about missed messages. Without a listener, they are
 * counted and reported in one warning a minute.
 */
const LOSSES_WARNING_MS = 60_000

export class Events {
  readonly #listeners = new Map<Name, Set<Listener>>()
  #hasWarnedOfHandlers = false
  readonly #losses = new Throttle(LOSSES_WARNING_MS)
  readonly #misses = new Throttle(LOSSES_WARNING_MS)

  /** @throws SluiceError INVALID_ARGUMENT for an unknown event, or a listener that is not a function */
  on<Event extends Name>(name: Event, listener: (payload: SluiceEvents[Event]) => void): () => void {
    if (!NAMES.includes(name)) {
      throw new SluiceError(
        'INVALID_ARGUMENT',
        `There is no event ${shown(name)}; there are ${NAMES.join(', ')}.`,
      )
    }
    if (typeof listener !== 'function')
      throw new SluiceError('INVALID_ARGUMENT', `The listener of '${name}' must be a function.`)
    let listeners = this.#listeners.get(name)
    if (listeners === undefined) this.#listeners.set(name, (listeners = new Set()))
    listeners.add(listener)
    return () => this.off(name, listener)
  }

  off<Event extends Name>(name: Event, listener: (payload: SluiceEvents[Event]) => void): void {
    this.#listeners.get(name)?.delete(listener)
  }

  emit<Event extends Name>(name: Event, payload: SluiceEvents[Event]): void {
    const listeners = this.#listeners.get(name)
    if (listeners === undefined || listeners.size === 0) {
      this.#warn(name, payload)
      return
    }
    for (const listener of listeners) {
      attempt(
        () => (listener as (payload: SluiceEvents[Event]) => unknown)(payload),
        // A failing listener must not stop the other listeners, this client half-way through its work, or the process.
        (error) => warn(`A listener of '${name}' failed: ${reasonOf(error)}`, { detail: stackOf(error) }),
      )
    }
  }

  #warn(name: Name, payload: SluiceEvents[Name]): void {
    if (name === 'error') {
      const { code, message } = payload as SluiceEvents['error']
      warn(message, { code })
    } else if (name === 'waiting') {
      const { queue, error } = payload as SluiceEvents['waiting']
      warn(`${error.message} A consumer of ${queue} waits until it can subscribe.`, { code: error.code })
    } else if (name === 'resubscribed') {
      const { pattern, queue } = payload as SluiceEvents['resubscribed']
      warn(
        `The queue ${queue} of the subscriber of ${pattern} was gone and was made again. Messages that were published in the meantime are lost to the subscriber.`,
        {},
      )
    } else if (name === 'handlerError' && !this.#hasWarnedOfHandlers) {
      this.#hasWarnedOfHandlers = true
      const { queue, offset, attempt, error } = payload as SluiceEvents['handlerError']
      warn(`A handler of ${queue} failed for offset ${offset}, attempt ${attempt}: ${reasonOf(error)}`, {
        detail: "Only the first failure is reported. Listen to 'handlerError' for all of them.",
      })
    } else if (name === 'leaseLost') {
      const losses = this.#losses.take(performance.now())
      if (losses === 0) return
      const { queue, offset, reason } = payload as SluiceEvents['leaseLost']
      const others = losses === 1 ? '' : `, and ${losses - 1} other leases since the last warning`
      warn(
        `The lease on message ${offset} of ${queue} was lost (${reason})${others}. What its handler did does not count, and the message may be delivered again.`,
        { code: 'LEASE_LOST', detail: "Listen to 'leaseLost' to get every loss." },
      )
    } else if (name === 'missed') {
      if (this.#misses.take(performance.now()) === 0) return
      const { stream, messages, offset } = payload as SluiceEvents['missed']
      warn(
        `A reader of ${stream} missed ${messages} messages before offset ${offset}: retention removed them before they were read.`,
        { detail: "Listen to 'missed' to get every gap." },
      )
    }
  }
}

function warn(text: string, options: { readonly code?: string; readonly detail?: string }): void {
  process.emitWarning(text, { type: 'SluiceWarning', ...options })
}
