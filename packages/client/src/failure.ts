/**
 * Fails a call whose answer comes later. An error that is created where the answer is read has a stack with lines of this
 * client only, but the user needs the line that made the call. V8 knows which async functions await a promise. So the
 * promise of the call is resolved with a promise that rejects two microtasks later: by then the chain of callers exists,
 * and the stack is captured from it. A call that succeeds costs nothing extra.
 */
import type { SluiceError, SluiceErrorNames } from '@sluice/protocol'

/**
 * Maximum number of errors per turn of the event loop that get their own stack, with the caller's line. All publishes
 * may fail in one turn, and each stack takes time.
 */
export const TRACED_MAX = 1_000
let traced = 0

/** Rejects the promise that `resolve` belongs to. Call it once: a second rejection would be unhandled. */
export function fail(
  resolve: (value: never) => void,
  error: SluiceError,
  names: SluiceErrorNames = NO_NAMES,
): void {
  ;(resolve as (value: Promise<never>) => void)(failing(error, names))
}

const NO_NAMES: SluiceErrorNames = {}

function failing(error: SluiceError, names: SluiceErrorNames): Promise<never> {
  if (traced === TRACED_MAX) return Promise.reject(untraced(error, names))
  if (traced++ === 0) {
    setImmediate(() => {
      traced = 0
    })
  }
  return rejection(error, names)
}

let named: { readonly error: SluiceError; readonly own: SluiceError } | undefined

// Consecutive failures about the same queue and offset share one error.
function untraced(error: SluiceError, names: SluiceErrorNames): SluiceError {
  if (names.queue === undefined && names.offset === undefined) return error
  const isKnown =
    named !== undefined &&
    named.error === error &&
    named.own.queue === names.queue &&
    named.own.offset === names.offset
  if (!isKnown) named = { error, own: error.with(names) }
  return named!.own
}

async function rejection(failure: SluiceError, names: SluiceErrorNames): Promise<never> {
  await Promise.resolve()
  await Promise.resolve()
  const own = failure.with(names)
  Error.captureStackTrace(own, rejection)
  throw own
}
