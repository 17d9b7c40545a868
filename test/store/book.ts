/**
 * A list on disk that the processes of the store share. A real store would use its database.
 *
 * A line is appended in one write, so lines of several processes stay whole and in the order of the writes, and a
 * SIGKILL cannot lose a line. The book does not prevent a second entry of an order: the demo checks at the end whether
 * there is one.
 */
import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

export interface Entry {
  /** The id of an order; in the book `new cards`, the name of a customer. */
  readonly id: string
  /** The process that wrote the line. */
  readonly by: string
}

export class Book {
  readonly #file: string

  constructor(directory: string, name: string) {
    this.#file = join(directory, `${name}.book`)
  }

  enter(id: string, by: string): void {
    appendFileSync(this.#file, `${id}\t${by}\n`)
  }

  has(id: string): boolean {
    return this.entries().some((entry) => entry.id === id)
  }

  /** The entries in the order in which they were written. */
  entries(): Entry[] {
    if (!existsSync(this.#file)) return []
    const lines = readFileSync(this.#file, 'utf8').split('\n').slice(0, -1)
    return lines.map((line) => {
      const [id, by] = line.split('\t')
      return { id: id!, by: by! }
    })
  }
}
