/** What the processes of the demo say to each other over the IPC channel. */

/** From the demo to a producer. */
export interface Grant {
  /** Publish this many in all. */
  readonly allowed: number
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

/** From the demo to a worker: do the work as before, and acknowledge nothing from now on. */
export interface Hold {
  readonly hold: true
}

export type WorkerReport =
  | { readonly kind: 'ready' }
  /** `isHeld`: these are not acknowledged until the worker ends. */
  | { readonly kind: 'handled'; readonly records: readonly Handled[]; readonly isHeld: boolean }

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
