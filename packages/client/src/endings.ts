/**
 * Calls handlers and reads how they end. A handler can return or throw any value, and every access to such a value can
 * throw.
 *
 * Invariant: no function here throws unless its comment says that it may. Each handler ends exactly once, with text that
 * can be sent.
 */
import { clipText, LIMITS, OUTCOME, wellFormedText, type Outcome } from '@sluice/protocol'
import { DeadLetter, Retry } from './message.js'
import type { SettleDetail } from './settle-request.js'

/** The outcome for the messages of a handler that threw. */
export interface Ending {
  readonly outcome: Outcome
  /** Delay before the next attempt; undefined means the back-off of the queue. */
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  readonly detail: SettleDetail | undefined
  /** Whether the handler failed without throwing `Retry` or `DeadLetter`. */
  readonly isFailure: boolean
}

/** The outcome that an error thrown by a handler asks for. */
export function endingOf(error: unknown): Ending {
  try {
    if (error instanceof DeadLetter) {
      const reason = clipReason(textOf(error.message))
      return {
        outcome: OUTCOME.deadLetter,
        delayMs: undefined,
        reason,
        detail: undefined,
        isFailure: false,
      }
    }
    if (error instanceof Retry) {
      const text = textOf(error.message)
      const reason = text === '' ? undefined : clipReason(text)
      const detail = error.pauseKey ? 'pauseKey' : undefined
      return { outcome: OUTCOME.retry, delayMs: delayOf(error), reason, detail, isFailure: false }
    }
  } catch {
    // Reading the error threw another error, so the handler counts as failed.
  }
  return {
    outcome: OUTCOME.retry,
    delayMs: undefined,
    reason: reasonOf(error),
    detail: undefined,
    isFailure: true,
  }
}

// The constructor checked the delay, but a handler can set the property.
function delayOf({ delayMs }: Retry): number | undefined {
  const isDelay =
    typeof delayMs === 'number' && Number.isInteger(delayMs) && delayMs >= 0 && delayMs <= LIMITS.delayMsMax
  return isDelay ? delayMs : undefined
}

/**
 * Returns the reason that a thrown value gives, as well-formed text. It is truncated to the length that the broker
 * keeps.
 */
export function reasonOf(error: unknown): string {
  try {
    return clipReason(textOf(error instanceof Error && error.message !== '' ? error.message : error))
  } catch {
    return 'The handler threw a value that has no text.'
  }
}

/** The stack of an error, or its text. */
export function stackOf(error: unknown): string {
  try {
    return textOf(error instanceof Error ? error.stack : error)
  } catch {
    return reasonOf(error)
  }
}

/** Returns the text of any value, because a library may have set an error's message to an object. May throw. */
function textOf(value: unknown): string {
  return typeof value === 'string' ? value : String(value)
}

function clipReason(text: string): string {
  return wellFormedText(clipText(text, LIMITS.reasonBytesMax))
}

type Then = (
  this: unknown,
  done: (value: unknown) => void,
  failed: (error: unknown) => void,
) => Promise<unknown>

const { then: nativeThen } = Promise.prototype as { readonly then: Then }

/** Returns the `then` method that `await` would call, or undefined if `result` is not a promise. May throw. */
export function thenOf(result: unknown): Then | undefined {
  if ((typeof result !== 'object' && typeof result !== 'function') || result === null) return undefined
  const { then } = result as { readonly then?: unknown }
  return typeof then === 'function' ? (then as Then) : undefined
}

/**
 * A native promise for `result`, which has the method `then`: `result` itself, or a promise that follows it. A foreign
 * `then` may call back twice, throw, or resolve with another promise.
 */
export function promiseOf(result: unknown, then: Then): Promise<unknown> {
  if (then === nativeThen) return result as Promise<unknown>
  return new Promise((resolve, reject) => {
    void then.call(result, resolve, reject)
  })
}

/**
 * Calls `done` or `failed` once, when `result` is settled. Returns a promise that resolves at that time. If this
 * function throws, it calls neither of the two.
 */
function follow(
  result: unknown,
  then: Then,
  done: () => void,
  failed: (error: unknown) => void,
): Promise<unknown> {
  return nativeThen.call(promiseOf(result, then), done, failed)
}

/** Is notified of the end of a handler that is still running after its call has returned. */
export interface Follower {
  /** Resolves when the handler ends, even when it fails. */
  ended: PromiseLike<unknown> | undefined
  readonly done: () => void
  readonly failed: (error: unknown) => void
}

/** Manages the followers for `callHandler`. */
export interface Caller<Context, Follows extends Follower> {
  /** Returns the follower of the handler with this context, which is still running. */
  follower(context: Context): Follows
  /** Releases a follower that is not needed after all, because the call counts as failed. */
  unfollowed(follower: Follows): void
}

/** Result of a call of a handler that failed before it returned a promise. */
export class Thrown {
  readonly error: unknown

  constructor(error: unknown) {
    this.error = error
  }
}

/**
 * Calls a handler. This is the only place that reads what a handler throws or returns. Returns undefined when the
 * handler succeeded, `Thrown` when it failed, or the follower of the handler if it is still running. In that case
 * `done` or `failed` of the follower is called once, when the handler ends.
 */
export function callHandler<Argument, Context, Follows extends Follower>(
  handler: (argument: Argument, context: Context) => unknown,
  argument: Argument,
  context: Context,
  caller: Caller<Context, Follows>,
): Follows | Thrown | undefined {
  let follower: Follows | undefined
  try {
    const result = handler(argument, context)
    const then = thenOf(result)
    if (then === undefined) return undefined
    follower = caller.follower(context)
    follower.ended = follow(result, then, follower.done, follower.failed)
    return follower
  } catch (error) {
    if (follower !== undefined) caller.unfollowed(follower)
    return new Thrown(error)
  }
}

/** Calls a function of the user and ignores its result. `failed` gets what it throws, at once or later. */
export function attempt(call: () => unknown, failed: (error: unknown) => void): void {
  try {
    const result = call()
    const then = thenOf(result)
    if (then !== undefined) void follow(result, then, ignored, failed)
  } catch (error) {
    failed(error)
  }
}

function ignored(): void {}
