/** The web shop: publishes each order to the queue of payments and schedules its reminder in one atomic step. */
import { ready, sluice, tell } from './crew.js'
import { Payments, priority, Reminders, type Order } from './orders.js'

async function place(order: Order): Promise<void> {
  const { id, customer, remindAfter } = order
  const receipts = await sluice.atomic((tx) => {
    tx.publish(Payments, order, { id, key: customer, priority: priority(order) })
    tx.publish(Reminders, order, { id, delay: remindAfter })
  })
  await tell({ kind: 'placed', order: id, duplicate: receipts.every(({ duplicate }) => duplicate) })
}

await ready((orders) => {
  for (const order of orders) void place(order)
})
