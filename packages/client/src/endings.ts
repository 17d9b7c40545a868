/**
 * How a handler ends: what it returned or threw is a value of the user and can be anything, so each look at it can
 * throw. Nothing here throws; each handler has exactly one end, and that end has text that can be sent.
 */
import { clipText, LIMITS, OUTCOME, wellFormedText, type Outcome } from '@sluice/protocol'
import { DeadLetter, Retry } from './message.js'

/** What becomes of the messages of a handler that threw. */
export interface Ending {
  readonly outcome: Outcome
  /** Undefined: the queue's own back-off. */
  readonly delayMs: number | undefined
  readonly reason: string | undefined
  /** The handler failed; it did not decide with `Retry` or `DeadLetter`. */
  readonly isFailure: boolean
}

/** What `error`, thrown by a handler, asks for. */
export function endingOf(error: unknown): Ending {
  try {
    if (error instanceof DeadLetter) {
      const reason = clipReason(textOf(error.message))
      return { outcome: OUTCOME.deadLetter, delayMs: undefined, reason, isFailure: false }
    }
    if (error instanceof Retry) {
      const text = textOf(error.message)
      const reason = text === '' ? undefined : clipReason(text)
      return { outcome: OUTCOME.retry, delayMs: delayOf(error), reason, isFailure: false }
    }
  } catch {
    // A look at it threw: whatever it is, the handler failed.
  }
  return { outcome: OUTCOME.retry, delayMs: undefined, reason: reasonOf(error), isFailure: true }
}

// The constructor checked it, but a property can be set.
function delayOf({ delayMs }: Retry): number | undefined {
  const isDelay =
    typeof delayMs === 'number' && Number.isInteger(delayMs) && delayMs >= 0 && delayMs <= LIMITS.delayMsMax
  return isDelay ? delayMs : undefined
}

/** What went wrong, of whatever was thrown: well-formed text, no longer than the broker keeps. */
export function reasonOf(error: unknown): string {
  try {
    return clipReason(textOf(error instanceof Error && error.message !== '' ? error.message : error))
  } catch {
    return 'The handler threw a value that has no text.'
  }
}

/** Where an error was made, for a person. */
export function stackOf(error: unknown): string {
  try {
    return textOf(error instanceof Error ? error.stack : error)
  } catch {
    return reasonOf(error)
  }
}

/** Text of any value, such as a message that some library set to an object. */
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

/** The `then` of what a handler returned, as `await` would look for it; undefined: the handler has ended. May throw. */
export function thenOf(result: unknown): Then | undefined {
  if ((typeof result !== 'object' && typeof result !== 'function') || result === null) return undefined
  const { then } = result as { readonly then?: unknown }
  return typeof then === 'function' ? (then as Then) : undefined
}

/**
 * A promise of what `result` with its method `then` comes to: itself, or where it is something else, which may call back
 * twice, throw, or resolve with another promise, one that follows it.
 */
export function promiseOf(result: unknown, then: Then): Promise<unknown> {
  if (then === nativeThen) return result as Promise<unknown>
  return new Promise((resolve, reject) => {
    void then.call(result, resolve, reject)
  })
}

/**
 * Calls one of the two, once, when `result` is settled; returns a promise for that. May throw at once: then it calls
 * neither.
 */
function follow(
  result: unknown,
  then: Then,
  done: () => void,
  failed: (error: unknown) => void,
): Promise<unknown> {
  return nativeThen.call(promiseOf(result, then), done, failed)
}

/** Gets the end of a handler that goes on after its call has returned. */
export interface Follower {
  /** A promise for that end, whatever it is. */
  ended: PromiseLike<unknown> | undefined
  readonly done: () => void
  readonly failed: (error: unknown) => void
}

/** Calls handlers. */
export interface Caller<Context, Follows extends Follower> {
  /** The handler with this context goes on: what gets its end. */
  follower(context: Context): Follows
  /** There is nothing to follow after all: its call counts as failed. */
  unfollowed(follower: Follows): void
}

/** The call of a handler failed, before it returned anything that goes on. */
export class Thrown {
  readonly error: unknown

  constructor(error: unknown) {
    this.error = error
  }
}

/**
 * Calls a handler, and is the one place where what it throws or returns is looked at. Returns how it ended: undefined, well;
 * `Thrown`; or what follows it, of which one function is called, once. Throws nothing.
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

/** Calls a function of the user whose result means nothing; `failed` gets what it throws, at once or later. Throws nothing. */
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
