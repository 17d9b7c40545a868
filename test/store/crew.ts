/**
 * The common part of the processes of the store: they connect, work, and exit on request. The arguments of each process
 * are the url, its name, and the directory of the books.
 */
import { connect, type Message } from '@sluice/client'
import { leave, standBy, tell as tellParent, type Stop } from '../demo/part.js'
import { Book } from './book.js'
import { happened, type Order } from './orders.js'
import type { Place, Report, Step } from './reports.js'

const [url, ownName, directory] = process.argv.slice(2)

export const name = ownName!

export function book(of: Step | 'new cards'): Book {
  return new Book(directory!, of)
}

standBy()
export const sluice = await connect(url, { name })
sluice.on('error', (error) => {
  console.error(name, error)
  process.exit(1)
})
sluice.on('handlerError', ({ error }) => console.error(name, error))

export function tell(report: Report): Promise<void> {
  return tellParent(report)
}

/** Reports that the process is ready. `place` is called with the orders of customers. */
export function ready(place: (orders: readonly Order[]) => void = () => {}): Promise<void> {
  process.on('message', (message: Stop | Place) => {
    if ('stop' in message) void sluice.close().then(leave)
    else place(message.orders)
  })
  return tell({ kind: 'ready' })
}

/**
 * Does the work of a step and enters it in its book, unless the book already has the entry. If it has, a worker died
 * after doing the work but before acknowledging it, so the message was delivered again. Only the book shows that the
 * work is already done.
 *
 * Afterwards it publishes the news that the step is done. After a crash it may publish the news twice; the id makes the
 * second message a duplicate.
 */
export async function once(step: Step, message: Message<Order>, work: () => Promise<void>): Promise<void> {
  const { body, attempt, redelivered } = message
  const done = book(step)
  const before = done.has(body.id)
  if (!before) {
    await work()
    done.enter(body.id, name)
  }
  const { id: order, total } = body
  await sluice.publish(happened(step), { order, step, total }, { id: `${order} ${step}`, key: order })
  await tell({ kind: 'done', step, order, attempt, redelivered, before })
}
