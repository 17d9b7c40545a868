/** The messages between the processes of the demo, over IPC. */

/** From the demo to a producer: permission to publish. */
export interface Grant {
  /** Number of records that the producer may have published in total. */
  readonly allowed: number
}

export type ProducerReport =
  | { readonly kind: 'ready' }
  | { readonly kind: 'progress'; readonly published: number; readonly confirmed: number }
  /** The connection was lost while this many publishes were unanswered. */
  | { readonly kind: 'cut'; readonly unanswered: number }
  /** All records were published and answered. `offsets[index]` is the offset of the receipt; -1: refused. */
  | { readonly kind: 'done'; readonly offsets: readonly number[]; readonly refusals: readonly Refusal[] }

export interface Refusal {
  readonly index: number
  readonly code: string
  readonly message: string
}

/** From the demo to a worker: continue the work, but acknowledge nothing from now on. */
export interface Hold {
  readonly hold: true
}

export type WorkerReport =
  | { readonly kind: 'ready' }
  /** `isHeld`: the worker never acknowledges these records. */
  | { readonly kind: 'handled'; readonly records: readonly Handled[]; readonly isHeld: boolean }

/** One call of a worker's handler. Calls are reported in the order in which they started. */
export interface Handled {
  /** Number of connections of this worker so far, including the present one. */
  readonly connection: number
  readonly producer: number
  readonly index: number
  readonly offset: number
  readonly redelivered: boolean
  /** The result of the work on the record: the origin airport. */
  readonly origin: string
  readonly delay: number
}
