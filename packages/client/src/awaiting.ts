/**
 * Which handlers await a promise of ours. A handler that awaits `close` of its own worker waits for itself, because the
 * worker waits for its handlers.
 *
 * V8 keeps the chain of async functions that await each other, and shows it in the stack of an error. A function with a
 * name of its own awaits each handler; where that name is in the chain of `close`, the handler cannot end before `close`
 * does. All of this happens in `close`, so that a handler costs nothing. Where the chain is broken (`Promise.race`, `then`,
 * an engine without it) the handler is waited for until the timeout.
 */

/** A handler that is running. */
export class Running {
  /** Its end; undefined until the call of the handler has returned. */
  ended: PromiseLike<unknown> | undefined = undefined
  /** It awaits the end of its worker, which therefore does not wait for it. */
  isExcused = false
  /** The function that awaits it, once one does: with a second one the chain would break. */
  awaitedBy = ''
  /** To be called at its end, where a lease of it is lost, or may be. */
  orphaned: (() => void) | undefined = undefined
}

const CHAIN_MAX = 1_000
let lastNumber = 0

/**
 * Excuses those handlers that await the async function that calls this. That function must have awaited a turn of the
 * event loop before, so that its caller awaits it by now.
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

/** The next turn of the event loop. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
