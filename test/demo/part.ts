/** The child's side of a demo process: it reports to its parent, follows its orders, and ends with it. */

/** From the parent: close and exit. */
export interface Stop {
  readonly stop: true
}

/** Ends this process with its parent and leaves Ctrl-C to the parent. */
export function standBy(): void {
  // Ctrl-C reaches every process of the terminal; the parent stops its children in order.
  process.on('SIGINT', () => {})
  process.on('disconnect', () => process.exit(1))
}

/** Resolves once the report has left this process, so that a SIGKILL cannot lose it. */
export function tell(report: object): Promise<void> {
  return new Promise((resolve, reject) => {
    if (process.send === undefined)
      reject(new Error('This is a part of a demo; run that by `pnpm demo` or `pnpm demo:store`.'))
    else process.send(report, undefined, undefined, (error) => (error === null ? resolve() : reject(error)))
  })
}

/** Closes the IPC channel, after the last report. */
export function leave(): void {
  process.removeAllListeners('disconnect')
  process.disconnect()
}
