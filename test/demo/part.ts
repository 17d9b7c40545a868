/** What a process of a demo does about its parent: reports to it, heeds it, and does not outlive it. */

/** From the parent: close and leave. */
export interface Stop {
  readonly stop: true
}

/** From now on this process ends with its parent, and leaves Ctrl-C to it. */
export function standBy(): void {
  // Ctrl-C reaches every process of the terminal; the parent ends the others in its order.
  process.on('SIGINT', () => {})
  process.on('disconnect', () => process.exit(1))
}

/** Resolves once the report is out of this process, where a SIGKILL cannot take it back. */
export function tell(report: object): Promise<void> {
  return new Promise((resolve, reject) => {
    if (process.send === undefined)
      reject(new Error('This is a part of a demo; run that by `pnpm demo` or `pnpm demo:store`.'))
    else process.send(report, undefined, undefined, (error) => (error === null ? resolve() : reject(error)))
  })
}

/** Nothing is left to do or to say. */
export function leave(): void {
  process.removeAllListeners('disconnect')
  process.disconnect()
}
