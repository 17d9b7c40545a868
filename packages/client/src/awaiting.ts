/**
 * Finds handlers that await the `close` of their own worker. The worker waits for its handlers, so such a handler would
 * wait for itself.
 *
 * V8 keeps the chain of async functions that await each other, and shows it in the stack of an error. Each handler is
 * awaited in a function with a unique name. If that name is in the chain of callers of `close`, the handler cannot end
 * before `close` does. All of this happens in `close`, so a handler costs nothing before that. Where the chain is
 * broken (`Promise.race`, `then`, an engine that keeps no chain), the worker waits for the handler until the timeout.
 */

/** A handler that is running. */
export class Running {
  /** The promise of the handler; undefined until its call has returned. */
  ended: PromiseLike<unknown> | undefined = undefined
  /** Whether the handler awaits the end of its worker. If so, the worker does not wait for the handler. */
  isExcused = false
  /**
   * Name of the function that awaits the handler. A handler has only one such function, because a second one would
   * break the chain.
   */
  awaitedBy = ''
  /** Called when the handler ends, if it has lost a lease or may have lost one. */
  orphaned: (() => void) | undefined = undefined
}

const CHAIN_MAX = 1_000
let lastNumber = 0

/**
 * Excuses each handler in the chain of async callers of this function. The nearest of these callers must already have
 * awaited one turn of the event loop; only then does its own caller await it.
 */
export function excuseAwaiting(handlers: readonly Running[]): void {
  if (handlers.length === 0) return
  for (const handler of handlers) if (handler.awaitedBy === '') awaitNamed(handler)
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = CHAIN_MAX
  const chain = String(new Error('chain').stack)
  Error.stackTraceLimit = stackTraceLimit
  for (const handler of handlers)
    if (handler.awaitedBy !== '' && chain.includes(handler.awaitedBy)) handler.isExcused = true
}

function awaitNamed(handler: Running): void {
  const { ended } = handler
  if (ended === undefined) return
  const name = `end of sluice handler ${++lastNumber},`
  const named = {
    async [name]() {
      await ended
    },
  }
  handler.awaitedBy = name
  void named[name]!()
}

/** Resolves in the next turn of the event loop. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
