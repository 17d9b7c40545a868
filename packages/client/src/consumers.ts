/**
 * The consumers of a client: its workers, iterators, readers and pullers. They are made here, for the calls `consume`,
 * `messages`, `read` and `pull`.
 *
 * Invariant: each consumer is attached to every new connection until it ends or the client is closed. The leases of
 * consumers that have ended (`session.retired`) are attached before all consumers.
 */
import type { SluiceError } from '@sluice/protocol'
import { addAbortListener, removeAbortListener } from './aborts.js'
import type { Connection } from './connection.js'
import type { SluiceEvents } from './events.js'
import type { Message } from './message.js'
import type { ConsumerSettings, PullSettings, Queue, WorkerSettings } from './options.js'
import { Pullers } from './pull.js'
import { StreamReader, type ReadSettings } from './reader.js'
import { pullThrough, Reader, ReadStream } from './schema.js'
import type { Consumer, Session } from './session.js'
import { MessageStream, type MessageIterator } from './stream.js'
import type { MessageReader } from './streams.js'
import type { BatchHandler, ConsumingWorker, Handler, Worker } from './worker.js'
import { workerOf } from './workers.js'

export class Consumers {
  readonly #session: Session
  readonly #serving: () => Connection | undefined
  readonly #pullers: Pullers
  readonly #all = new Set<Consumer>()
  readonly #workers = new Set<ConsumingWorker>()
  readonly #streams = new Set<MessageStream>()

  /** `serving` returns the connection, unless its broker is stopping: such a broker accepts no subscription. */
  constructor(session: Session, serving: () => Connection | undefined) {
    this.#session = session
    this.#serving = serving
    this.#pullers = new Pullers(session)
    this.#all.add(this.#pullers)
  }

  /** The workers that are not closed. */
  get workers(): readonly ConsumingWorker[] {
    return [...this.#workers]
  }

  /** Makes a worker. It is closed when `signal` is aborted. */
  work<Output>(
    queue: Queue,
    settings: WorkerSettings,
    handler: Handler<Output> | BatchHandler<Output>,
    signal: AbortSignal | undefined,
  ): Worker {
    const close = (): void => {
      worker.close().catch((error: unknown) => this.#session.report(error as SluiceError))
    }
    const worker = workerOf(this.#session, queue, settings, handler, (worker) => {
      this.#workers.delete(worker)
      this.#all.delete(worker)
      removeAbortListener(signal, close)
    })
    this.#workers.add(worker)
    this.#add(worker)
    if (signal?.aborted === true) close()
    else if (signal !== undefined) addAbortListener(signal, close)
    return worker
  }

  iterate<Output>(
    { name, schema }: Queue,
    settings: ConsumerSettings,
    signal: AbortSignal | undefined,
  ): MessageIterator<Output> {
    const stream = new MessageStream(this.#session, name, settings, signal, (stream) => {
      this.#streams.delete(stream)
      this.#all.delete(stream)
    })
    if (signal?.aborted !== true) {
      this.#streams.add(stream)
      this.#add(stream)
    }
    const read = schema === undefined ? stream : new ReadStream(stream, new Reader(schema, this.#session))
    return read as unknown as MessageIterator<Output>
  }

  pull<Output>({ name, schema }: Queue, settings: PullSettings): Promise<Message<Output>[]> {
    const pulled =
      schema === undefined
        ? this.#pullers.pull(name, settings)
        : pullThrough(new Reader(schema, this.#session), this.#pullers, name, settings)
    return pulled as Promise<Message<Output>[]>
  }

  read<Output>(
    { name, schema }: Queue,
    settings: ReadSettings,
    signal: AbortSignal | undefined,
    missed: (event: SluiceEvents['missed']) => void,
  ): MessageReader<Output> {
    const reader = new StreamReader(this.#session, name, schema, settings, signal, missed, (reader) =>
      this.#all.delete(reader),
    )
    if (signal?.aborted !== true) this.#add(reader)
    return reader as unknown as MessageReader<Output>
  }

  #add(consumer: Consumer): void {
    this.#all.add(consumer)
    // Without a serving connection, `attach` attaches the consumer to the next one.
    const serving = this.#serving()
    if (serving !== undefined) consumer.attach(serving)
  }

  attach(connection: Connection): void {
    for (const leases of this.#session.retired) leases.attach(connection)
    for (const consumer of this.#all) consumer.attach(connection)
  }

  /** Ends the workers and iterators, and the pulls that wait with `error`. Readers have nothing to settle. */
  close(error: SluiceError, timeoutMs: number): Promise<unknown>[] {
    this.#pullers.fail(error)
    const closing: Promise<unknown>[] = []
    for (const worker of this.#workers) closing.push(worker.close({ timeout: timeoutMs }))
    for (const stream of this.#streams) closing.push(stream.return())
    return closing
  }

  /** Called when the client is closed: there is no further connection. */
  fail(error: SluiceError): void {
    for (const consumer of this.#all) consumer.fail(error)
    this.#all.clear()
    for (const leases of this.#session.retired) leases.fail(error)
  }
}
