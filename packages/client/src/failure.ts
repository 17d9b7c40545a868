/**
 * How a call fails whose answer comes later. An error that is made where the answer is read has a stack of this client
 * alone; what its reader looks for is the line that called. V8 knows which async functions await a promise, so the promise
 * of the call is resolved with one that rejects two microtasks later: by then the chain is there, and the stack is taken
 * from it. A call that succeeds costs nothing for that.
 */
import type { SluiceError, SluiceErrorNames } from '@sluice/protocol'

/** Errors in one turn of the event loop that get a stack of their own: all publishes may fail at once. */
export const TRACED_MAX = 1_000
let traced = 0

/** Settles the promise of a call, which `resolve` belongs to. Once: a second failure would have nothing that handles it. */
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

// Those that are about the same share one error.
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
