/** What the processes of the demo say to each other over the IPC channel. */

/** From the demo to a producer. */
export interface Grant {
  /** Publish this many in all. */
  readonly allowed: number
}

/** From the demo to a worker: close and leave. */
export interface Stop {
  readonly stop: true
}

export type ProducerReport =
  | { readonly kind: 'ready' }
  | { readonly kind: 'progress'; readonly published: number; readonly confirmed: number }
  /** The connection was lost while this many publishes were unanswered. */
  | { readonly kind: 'cut'; readonly unanswered: number }
  /** Every record was published and answered. `offsets[index]` is where the receipt says it is; -1: refused. */
  | { readonly kind: 'done'; readonly offsets: readonly number[]; readonly refusals: readonly Refusal[] }

export interface Refusal {
  readonly index: number
  readonly code: string
  readonly message: string
}

export type WorkerReport =
  | { readonly kind: 'ready' }
  | { readonly kind: 'handled'; readonly records: readonly Handled[] }

/** One call of a worker's handler. Calls are reported in the order in which they began. */
export interface Handled {
  /** Connections of this worker so far, the present one included. */
  readonly connection: number
  readonly producer: number
  readonly index: number
  readonly offset: number
  readonly redelivered: boolean
  /** What the work made of the record. */
  readonly origin: string
  readonly delay: number
}

/** Sends to the parent; resolves once the report is out of this process, where a SIGKILL cannot take it back. */
export function tell(report: ProducerReport | WorkerReport): Promise<void> {
  return new Promise((resolve, reject) => {
    if (process.send === undefined)
      reject(new Error('This is a part of the demo; run test/dist/demo/run.js.'))
    else process.send(report, undefined, undefined, (error) => (error === null ? resolve() : reject(error)))
  })
}
