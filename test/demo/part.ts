/** The child's side of a demo process: it reports to its parent, follows its parent's orders, and ends with it. */

/** An order from the parent: close and exit. */
export interface Stop {
  readonly stop: true
}

/** Makes this process end with its parent, and leaves Ctrl-C to the parent. */
export function standBy(): void {
  // Ctrl-C reaches every process of the terminal; the parent stops its children in the right order.
  process.on('SIGINT', () => {})
  process.on('disconnect', () => process.exit(1))
}

/** Sends a report. Resolves once the report has left this process, so that a SIGKILL cannot lose the report. */
export function tell(report: object): Promise<void> {
  return new Promise((resolve, reject) => {
    if (process.send === undefined)
      reject(
        new Error('This process is a part of a demo; run the demo with `pnpm demo` or `pnpm demo:store`.'),
      )
    else process.send(report, undefined, undefined, (error) => (error === null ? resolve() : reject(error)))
  })
}

/** Closes the IPC channel, after the last report. */
export function leave(): void {
  process.removeAllListeners('disconnect')
  process.disconnect()
}
