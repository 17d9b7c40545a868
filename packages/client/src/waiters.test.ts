import { expect, it } from 'vitest'
import { Waiters } from './waiters.js'

it('resolve all waiting promises, once, in order', async () => {
  const waiters = new Waiters()
  const told: string[] = []
  const wait = async (name: string): Promise<void> => {
    await waiters.wait()
    told.push(name)
  }
  expect(waiters.any).toBe(false)
  waiters.notify()
  const all = [wait('a'), wait('b')]
  expect(waiters.any).toBe(true)
  waiters.notify()
  expect(waiters.any).toBe(false)
  const late = wait('late')
  await Promise.all(all)
  expect(told).toEqual(['a', 'b'])
  waiters.notify()
  await late
  expect(told).toEqual(['a', 'b', 'late'])
})
